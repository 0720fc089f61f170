"""The compiler with a goal in place of τ: what a user asks for, looked for on the target and measured there."""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from passes.plan import DeletionPlan
from vitfx.attain import Attained, attain
from vitfx.baseline import export_plain
from vitfx.circuit import ATTRIBUTED, EMBED, Circuit, Decision, Edge, Writer
from vitfx.compensation import Compensated, divergence, with_means
from vitfx.compile import Pruned
from vitfx.deployment import Deployment, deploy
from vitfx.device import pick_device, synchronize
from vitfx.discovery import origins
from vitfx.errors import UserError
from vitfx.export import to_onnx
from vitfx.files import write_aside
from vitfx.frontend import read_module
from vitfx.goal import DROP, FLOPS, KL, PARAMETERS, SPEEDUP, Goal, Target
from vitfx.image_set import Images
from vitfx.latency import Timing, time_interleaved
from vitfx.latency_table import LatencyTable, measure_table
from vitfx.lowering import lower
from vitfx.machine import environment
from vitfx.price import Price, flops_price, parameters_price
from vitfx.progress import Watcher
from vitfx.pursuit import Pursuit, State
from vitfx.runtime import OnnxModel, open_session
from vitfx.stages import read_stages
from vitfx.verify import rewrite, tokens_of, verify

SCORED = 256
_VERIFIED_IMAGES = 64
_ROUNDS, _SECONDS = 41, 8.0
_EXAMPLES = 8


@dataclass(frozen=True)
class Reference:
    """The model that a goal is counted from. module: the user's own. graph: canonical, on the CPU."""

    module: nn.Module
    graph: GraphModule


@dataclass(frozen=True)
class Asked:
    """goal, target: see `vitfx.goal`. deployment: how artifacts are exported, whose times count. seed: of scoring.
    fresh: times are measured anew even where the cache has them. reference: what the goal is counted from where the
    model is what earlier pruning left of it; None for the model itself."""

    goal: Goal
    target: Target
    deployment: Deployment
    seed: int = 0
    fresh: bool = False
    reference: Reference | None = None

    def to_json(self) -> dict[str, Any]:
        return {"goal": self.goal.kind, "value": self.goal.value, "target": self.target.to_json(), "seed": self.seed}


def compile_for_goal(
    module: nn.Module,
    images: Images,
    asked: Asked,
    *,
    device: torch.device,
    watcher: Watcher,
    accept: Callable[[GraphModule], object] | None = None,
) -> Pruned:
    """Traces, prices, prunes in rounds, measures and verifies. The module stays as it is.

    images: a quarter of them is held out from fitting, and says what is lost. device: where scoring and fitting run;
    the artifact is timed on the target. accept: as in `vitfx.compile.compile_model`. Raises UserError where the model
    can't be used or the goal is out of reach, VerificationError where a proof fails."""
    if asked.goal.kind == DROP and images.labels is None:
        raise UserError("--max-drop needs labelled images: give images in class folders, or --max-kl in its place")
    front = read_module(module, images.pixels, watcher)
    original = front.graph_module
    if accept is not None:
        accept(original)
    facts = origins(original, images)
    bench = Bench(module, original, images.pixels, asked, watcher)
    price = bench.price()
    pursuit = Pursuit(
        # The bench exports the same model from the CPU in between.
        copy.deepcopy(original).to(device),
        images.pixels.to(device),
        None if images.labels is None else images.labels.to(device),
        scored=SCORED,
        seed=asked.seed,
        watcher=watcher,
    )
    found = attain(pursuit, asked.goal, price, watcher, plain=bench.plain, measure=bench.measure, whole=bench.whole)
    plan = found.state.plan
    artifact = rewrite(original, plan).graph_module.eval()
    verification = verify(original, artifact, plan, images.pixels[:_VERIFIED_IMAGES])
    circuit = _circuit(original, found, price, asked, facts)
    held_out = len(pursuit.held_out)
    mean = with_means(original, DeletionPlan(plan.deletions), pursuit.scored.cpu())
    compensated = Compensated(
        plan,
        "ridge",
        images=len(pursuit.fitted),
        held_out=held_out,
        kl=found.standing.kl,
        kl_mean=divergence(original, mean, pursuit.held_out.cpu()),
    )
    notes = (*front.notes, _note(asked, found, held_out))
    return Pruned(artifact, original, circuit, plan, verification, notes, compensated, found.standing.kl)


def _note(asked: Asked, found: Attained, held_out: int) -> str:
    standing = found.standing
    lost = "" if standing.drop is None else f", {standing.drop:.1f} ± {standing.error:.1f} points of top-1 lost"
    fast = "" if found.speedup is None else f"measured {found.speedup:.2f}×, "
    counted = "" if asked.reference is None else ", counted from the original"
    return (
        f"asked for {asked.goal}{counted}: {fast}KL {standing.kl:.4f}{lost} on {held_out} images held out from fitting"
    )


class Bench:
    """Exports and times models on the target."""

    def __init__(
        self, module: nn.Module, original: GraphModule, pixels: Tensor, asked: Asked, watcher: Watcher
    ) -> None:
        """module: the user's own; original: its canonical graph."""
        self.original, self.asked, self.watcher = original, asked, watcher
        self.reference = asked.reference or Reference(module, original)
        self.examples = pixels[:_EXAMPLES]
        self.device = pick_device(asked.target.device)
        batch = asked.target.batch
        self.batch = pixels.repeat(-(-batch // len(pixels)), 1, 1, 1)[:batch]
        self.plain: float | None = None
        self.whole: float | None = None

    def price(self) -> Price:
        """Also finds what the goal is counted from: `plain`, the plain export's time, or `whole`, what shares are
        of."""
        kind = self.asked.goal.kind
        if kind in (PARAMETERS, FLOPS):
            self.whole = self._counted(self.reference.graph).whole
            return self._counted(self.original)
        assert kind in (SPEEDUP, DROP, KL)
        table = self._table()
        self.plain = table.plain
        faster = f"{table.plain / table.whole:.2f}×"
        if self.asked.reference is None:
            self.watcher.say(f"on {self.asked.target} exact rewrites alone make it {faster} faster")
        else:
            self.watcher.say(f"on {self.asked.target} it is {faster} as fast as the original's plain export already")
        return table.price()

    def measure(self, state: State) -> float:
        """How many times faster than the plain export; measured in turns with it, each by its tenth percentile."""
        pruned = rewrite(self.original, state.plan).graph_module.eval()
        model = deploy(pruned, self.asked.deployment, self.examples, {}).model
        timings = self.timings({"plain": self.open_plain(), "pruned": self.open(model.SerializeToString())})
        return timings["plain"].p10_ms / timings["pruned"].p10_ms

    def timings(self, sessions: Mapping[str, OnnxModel]) -> dict[str, Timing]:
        """Of one batch each, in turns."""
        return time_interleaved(
            {name: session.bind(self.batch) for name, session in sessions.items()},
            rounds=_ROUNDS,
            min_seconds=_SECONDS,
            synchronize=partial(synchronize, self.device),
            progress=self.watcher.bar("timing"),
        )

    def open(self, model: Path | bytes) -> OnnxModel:
        """On the target."""
        return open_session(model, self.device)

    def open_plain(self) -> OnnxModel:
        """The plain export of what the goal is counted from."""
        model, _ = export_plain(self.reference.module, self.reference.graph, self.examples[:2], {})
        return self.open(model.SerializeToString())

    def _counted(self, graph_module: GraphModule) -> Price:
        if self.asked.goal.kind == PARAMETERS:
            return parameters_price(graph_module)
        return flops_price(graph_module, self.examples.shape[1:], tokens_of(graph_module, self.examples[:2]))

    def _table(self) -> LatencyTable:
        cached = _cache() / f"latency-{self._key()}.json"
        if cached.is_file() and not self.asked.fresh:
            return LatencyTable.from_json(cached.read_text(encoding="utf-8"))
        deployment = self.asked.deployment

        def lowered(graph_module: GraphModule) -> GraphModule:
            return lower(graph_module, deployment.graph_rewrites, self.examples, deployment.plain).graph_module

        def opened(graph_module: GraphModule, example: Tensor) -> OnnxModel:
            plain = to_onnx(graph_module, example[:2], {})
            return self.open(deployment.formed(plain).model.SerializeToString())

        table = measure_table(self.original, self.batch, lowered, self.open_plain(), opened, self.device, self.watcher)
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_aside(cached, table.to_json())
        return table

    def _key(self) -> str:
        """sha256 of what times depend on: the machine, the target, how models are exported, and their shapes."""
        graphs = [self.original, *([self.asked.reference.graph] if self.asked.reference else [])]
        shapes = [(stage.name, repr(stage.module), repr(stage.norm)) for one in graphs for stage in read_stages(one)]
        machine = environment()
        record = {
            "machine": {name: machine[name] for name in ("platform", "cpu", "cores", "gpus", "onnxruntime", "vitfx")},
            "target": self.asked.target.to_json(),
            "deployment": self.asked.deployment.to_json(),
            "image": list(self.examples.shape[1:]),
            "shapes": shapes,
        }
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:24]


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vitfx"


def _circuit(original: GraphModule, found: Attained, price: Price, asked: Asked, facts: dict[str, str]) -> Circuit:
    """The model as a circuit of the head graph: each head, and of each MLP what is kept and what is gone as a path."""
    gone = {deletion.name: deletion for deletion in found.state.plan.deletions}
    decisions = [Decision(Edge(Writer(EMBED)), True, 0.0, None, ATTRIBUTED)]
    for stage in read_stages(original):
        module = stage.sublayer
        if module is None:
            continue
        deletion = gone.get(stage.name)
        dead = () if deletion is None else deletion.units
        kept = tuple(range(module.units)) if deletion is None else deletion.kept
        each = found.state.costs.get(stage.name, 0.0) / max(1, len(dead))
        groups: list[tuple[tuple[int, ...], bool]] = [(kept, True), (dead, False)]
        if module.kind == "head":
            groups = [((head,), head not in dead) for head in range(module.units)]
        decisions += [
            Decision(
                Edge(Writer(stage.name, index, units)), alive, 0.0 if alive else each * len(units), None, ATTRIBUTED
            )
            for index, (units, alive) in enumerate(one for one in groups if one[0])
        ]
    settings = {"method": "goal", "granularity": "head", "ablation": "mean", **asked.to_json()}
    steps = {"unit": price.unit, "whole": price.whole, "steps": list(found.steps), "speed-up": found.speedup}
    details = {"price": steps, "held out": asdict(found.standing)}
    return Circuit(tuple(decisions), found.standing.kl, settings, facts, details)

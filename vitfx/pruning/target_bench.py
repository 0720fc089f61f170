"""The target runtime of a goal: exports and times models on it, and caches the times of sublayers."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from passes.merge_tokens import MergeBySchedule
from vitfx.deploy.deployment import Deployment, deploy
from vitfx.deploy.export import export_plain, to_onnx
from vitfx.deploy.lowering import lower
from vitfx.deploy.openvino_runtime import require_openvino
from vitfx.deploy.precisions import BF16, FP16, INT8, OPENVINO
from vitfx.deploy.quantize import Quantized, to_bfloat16, to_float16, to_int8
from vitfx.deploy.runtime import Session
from vitfx.deploy.runtimes import open_on
from vitfx.graph.stages import read_stages
from vitfx.graph.verify import rewritten, tokens_of
from vitfx.pruning.cost_model import Price, flops_price, parameters_price
from vitfx.pruning.goal import FLOPS, PARAMETERS, PROMISED, SPEEDUP, Goal, Target
from vitfx.pruning.iterative_pruner import State
from vitfx.pruning.latency_table import LatencyTable, measure_table
from vitfx.pruning.token_merging import with_merges
from vitfx.support.devices import pick_device, synchronize
from vitfx.support.errors import UserError
from vitfx.support.files import WriteError, writing
from vitfx.support.machine import environment
from vitfx.support.progress import Watcher
from vitfx.support.timing import SpeedUp, Timing, batch_to_time, speed_up, time_interleaved

_ROUNDS, _SECONDS, _MOST_SECONDS = 41, 8.0, 40.0
_ROUGHLY = 21
"""Rounds for what only chooses between models."""
_EXAMPLES = 8
_RUN_AT_ONCE = 32


@dataclass(frozen=True)
class ReferenceModel:
    """The model that a goal is counted from."""

    module: nn.Module  #: the user's own
    graph: GraphModule  #: canonical, on the CPU


@dataclass(frozen=True)
class GoalRequest:
    """A goal and how it is to be measured."""

    goal: Goal
    target: Target
    deployment: Deployment  #: how the artifacts that are timed are exported
    seed: int = 0  #: of scoring
    fresh: bool = False  #: measure times anew even where they are cached
    tokens: str | None = None  #: by what schedule tokens merge, see `vitfx.pruning.token_merging.choose_merging`
    memory: float | None = None  #: GiB at most for streams that are kept between cuts; None for no limit
    #: what the goal is counted from if earlier pruning made the model from it; None for the model itself
    reference: ReferenceModel | None = None

    def to_json(self) -> dict[str, Any]:
        return {"goal": self.goal.kind, "value": self.goal.value, "target": self.target.to_json(), "seed": self.seed}


class TargetBench:
    """Exports and times models on the target."""

    def __init__(
        self,
        module: nn.Module,
        original: GraphModule,
        pixels: Tensor,
        asked: GoalRequest,
        watcher: Watcher,
    ) -> None:
        """module: the user's own. original: its canonical graph."""
        self.original, self.asked, self.watcher = original, asked, watcher
        self.merging: MergeBySchedule | None = None
        """Merges tokens of what is measured; it may be set at any time."""
        self.reference = asked.reference or ReferenceModel(module, original)
        self.examples = pixels[:_EXAMPLES]
        self.device = pick_device(asked.target.device)
        if asked.target.runtime == OPENVINO:
            require_openvino()
        self.batch = batch_to_time(pixels, asked.target.batch)
        self.plain: float | None = None
        self.whole: float | None = None

    def price(self) -> Price:
        """What the model in which no tokens merge costs in the goal's unit. Also sets what the goal is counted from:
        `plain`, the plain export's time, or `whole`, the price that shares are of."""
        if self.counts:
            self.whole = self.counted(self.reference.graph).whole
            return self.counted(self.original)
        table = self._table()
        self.plain = table.plain
        speed = f"{table.plain / table.whole:.2f}×"
        if self.asked.reference is None:
            self.watcher.say(f"on {self.asked.target} exact rewrites alone make it {speed} as fast")
        else:
            self.watcher.say(f"on {self.asked.target} it is already {speed} as fast as the original's plain export")
        return table.price()

    @property
    def counts(self) -> bool:
        """Whether prices are counted; otherwise they are times."""
        return self.asked.goal.kind in (PARAMETERS, FLOPS)

    def share_to_keep(self, price: Price) -> float | None:
        """What a goal leaves of this price; None for a limit on what is lost."""
        goal = self.asked.goal
        if goal.kind == SPEEDUP:
            assert self.plain is not None
            return min(1.0, self.plain / goal.value / price.whole)
        return None if self.whole is None else min(1.0, goal.value * self.whole / price.whole)

    def measure(self, state: State) -> SpeedUp:
        """How many times faster than the plain export: both timed in turns, until that is known well enough."""
        pruned = rewritten(self.original, state.plan, self.merging)
        return speed_up(*self.timings(self.open_plain(), self._deployed(pruned)))

    def time_share(self, merging: MergeBySchedule) -> float:
        """The time that this leaves of the whole model's, roughly, both timed in turns."""
        merged = with_merges(self.original, merging)
        return 1 / speed_up(*self.timings(self._unmerged, self._deployed(merged), roughly=True)).value

    def in_int8(self, graph_module: GraphModule, calibration: Tensor) -> Quantized:
        """A canonical graph as it is deployed on the target. calibration: (N, C, H, W), for the ranges."""
        return to_int8(deploy(graph_module, self.asked.deployment, self.examples, {}).model, calibration)

    def answers(self, model: onnx.ModelProto, pixels: Tensor) -> Tensor:
        """Of an exported model, on the target. pixels: (N, C, H, W)."""
        session = self._session(model)
        return torch.cat([session.run(part) for part in pixels.cpu().split(_RUN_AT_ONCE)])

    @cached_property
    def _unmerged(self) -> Session:
        """The whole model, which every schedule is timed against."""
        return self._deployed(self.original)

    def _deployed(self, graph_module: GraphModule) -> Session:
        return self.open(deploy(graph_module, self.asked.deployment, self.examples, {}).model)

    def timings(self, plain: Session, pruned: Session, *, roughly: bool = False) -> tuple[Timing, Timing]:
        """Their times for one batch, taken in turns, roughly or until their ratio is known as well as is promised."""

        def settled(timings: Mapping[str, Timing]) -> bool:
            return speed_up(timings["plain"], timings["pruned"]).width <= PROMISED

        timings = time_interleaved(
            {"plain": plain.bind(self.batch), "pruned": pruned.bind(self.batch)},
            rounds=_ROUGHLY if roughly else _ROUNDS,
            min_seconds=0.0 if roughly else _SECONDS,
            max_seconds=_MOST_SECONDS,
            settled=None if roughly else settled,
            synchronize=partial(synchronize, self.device),
            progress=self.watcher.bar("timing"),
        )
        return timings["plain"], timings["pruned"]

    def open(self, model: onnx.ModelProto, part_of: Tensor | None = None) -> Session:
        """A session on the target, in its precision, for times.

        part_of: where the model is a part of one, an example (N, tokens, width) of what it reads.
        """
        precision, layouts = self.asked.target.precision, True
        if precision == INT8:
            model = to_int8(model, self.examples if part_of is None else part_of, keep_last=part_of is None).model
        elif precision == FP16:
            model, layouts = to_float16(model), False
        elif precision == BF16:
            model = to_bfloat16(model)
        return self._session(model, layouts=layouts)

    def open_plain(self) -> Session:
        """The plain export of what the goal is counted from: in float32 beside int8, which has none of its own."""
        if self.asked.target.precision == INT8:
            return self._session(self._plain_export)
        return self.open(self._plain_export)

    def _session(self, model: onnx.ModelProto, *, layouts: bool = True) -> Session:
        """layouts: as `vitfx.deploy.runtime.open_session` has it."""
        return open_on(self.asked.target.runtime, model.SerializeToString(), self.device, layouts=layouts)

    @cached_property
    def _plain_export(self) -> onnx.ModelProto:
        self.watcher.say("exporting the unpruned model, which speed-ups are counted from")
        return export_plain(self.reference.module, self.reference.graph, self.examples[:2], {})[0]

    def counted(self, graph_module: GraphModule) -> Price:
        """Raises AssertionError where prices are times."""
        assert self.counts
        if self.asked.goal.kind == PARAMETERS:
            return parameters_price(graph_module)
        return self._flops(graph_module)

    def _flops(self, graph_module: GraphModule) -> Price:
        return flops_price(graph_module, self.examples.shape[1:], tokens_of(graph_module, self.examples[:2]))

    def _table(self) -> LatencyTable:
        cached = _cache() / f"latency-{self._key()}.json"
        if cached.is_file() and not self.asked.fresh:
            try:
                return LatencyTable.read(cached)
            except UserError as error:
                self.watcher.say(str(error))
        deployment = self.asked.deployment

        def lowered(graph_module: GraphModule) -> GraphModule:
            return lower(graph_module, deployment.graph_rewrites, self.examples, deployment.plain).graph_module

        def opened(graph_module: GraphModule, example: Tensor) -> Session:
            model = deployment.formed(to_onnx(graph_module, example[:2], {}, deployment.opset)).model
            return self.open(model, None if example.dim() == self.examples.dim() else example)

        table = measure_table(self.original, self.batch, lowered, self.open_plain(), opened, self.device, self.watcher)
        if (doubt := table.doubt(self._flops(self.original))) is not None:
            self.watcher.say(doubt)
            return table
        try:
            with writing(cached):
                cached.parent.mkdir(parents=True, exist_ok=True)
            table.write(cached)
        except WriteError:
            self.watcher.say(f"{cached} can't be written: the next run will measure these times again")
        return table

    def _key(self) -> str:
        """sha256 of all that times depend on: the machine, the target, how models are exported, and their shapes."""
        machine = environment()
        facts = ["platform", "cpu", "cpu_features", "cores", "gpus", "torch", "onnxruntime", "vitfx"]
        if self.asked.target.runtime == OPENVINO:
            facts.append(OPENVINO)
        plain = self._plain_export.graph
        record = {
            "machine": {name: machine[name] for name in facts},
            "target": self.asked.target.to_json(),
            "deployment": self.asked.deployment.to_json(),
            "image": list(self.examples.shape[1:]),
            "shapes": [(stage.name, repr(stage.module), repr(stage.norm)) for stage in read_stages(self.original)],
            "plain": [
                [node.op_type for node in plain.node],
                [list(weight.dims) for weight in plain.initializer],
            ],
        }
        return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:24]


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vitfx"

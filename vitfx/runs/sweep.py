"""One run of `vitfx.prune --sweep`: models of rising speed, each reached from the one before, in a folder."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch.fx import GraphModule

from vitfx.deploy.deployment import deploy
from vitfx.deploy.export import export_checked, onnx_metadata
from vitfx.deploy.runtime import Session
from vitfx.discovery.run import origins
from vitfx.graph.canonical import read_module
from vitfx.graph.verify import rewrite, verify
from vitfx.images.image_set import Images
from vitfx.models.graph_json import encode
from vitfx.pruning.cost_model import Price
from vitfx.pruning.goal_search import ROUNDS, GoalSearch
from vitfx.pruning.iterative_pruner import IterativePruner, State
from vitfx.pruning.plan_file import read_plan, write_plan
from vitfx.pruning.prune_for_goal import SCORED
from vitfx.pruning.target_bench import GoalRequest, TargetBench
from vitfx.runs.beside_plain import measure_beside_plain
from vitfx.runs.prune_run import Basis, SweepRun
from vitfx.runs.step_file import begin_steps
from vitfx.runs.sweep_points import Point, by_speed, draw_front, missed, read_points, to_markdown, write_points
from vitfx.runs.tasks import refuse_others
from vitfx.support.errors import UserError
from vitfx.support.files import write_aside, writing
from vitfx.support.machine import environment
from vitfx.support.pictures import has_matplotlib, png_bytes
from vitfx.support.progress import Watcher

TABLE, PICTURE, ARTIFACT = "sweep.md", "sweep.png", "pruned.onnx"
_STRIDE = 0.1
"""Of the whole price; what lies further is reached in several cuts, each scored anew."""
_VERIFIED_IMAGES = 64


@dataclass(frozen=True)
class SweepResult:
    """A finished sweep."""

    points: tuple[Point, ...]  #: all that the folder has, by rising speed-up
    missed: str | None  #: the speed-ups that were missed and what was measured, in words


@dataclass(frozen=True)
class _PointMaker:
    """Makes points."""

    run: SweepRun
    original: GraphModule  #: canonical, on the CPU
    images: Images
    bench: TargetBench
    price: Price
    plain_ms: float  #: the plain export's time
    pruner: IterativePruner
    plain: Session  #: the session of the plain export
    watcher: Watcher

    def make(self, asked: float | None, start: State) -> tuple[Point, State]:
        """The point and its model, written into the point's folder. Raises UserError, VerificationError and
        ExportMismatch."""
        state = start if asked is None else self._reach(asked, start)
        state = self.pruner.finish(state)
        artifact = rewrite(self.original, state.plan).graph_module.eval()
        pixels, bar = self.images.pixels[:_VERIFIED_IMAGES], self.watcher.bar("proof")
        proof = verify(self.original, artifact, state.plan, pixels, bar)
        folder = self.run.out / point_folder(asked)
        path = self._write(folder, artifact, asked)
        write_plan(folder, state.plan)
        beside = measure_beside_plain(self.bench, self.plain, path, self.run.evaluation)
        point = Point(
            asked=asked,
            **beside.to_json(),
            params=proof.measured.parameters / proof.before.parameters,
            flops=proof.measured.flops / proof.before.flops,
            rounds=self.pruner.rounds,
            folder=folder.name,
        )
        return point, state

    def state_of(self, point: Point) -> State:
        """The model of a point that an earlier run made. Raises UserError where its files are not usable."""
        plan = read_plan(self.run.out / point.folder)
        deleted = {deletion.name: len(deletion.units) for deletion in plan.deletions}
        kept = {name: sublayer.units - deleted.get(name, 0) for name, sublayer in self.pruner.modules.items()}
        return State(plan, kept, {})

    def _reach(self, asked: float, start: State) -> State:
        saving = self.price.total(start.kept) - self.plain_ms / asked
        rounds = min(ROUNDS, max(1, math.ceil(saving / (_STRIDE * self.price.whole))))
        attempt = GoalSearch(self.pruner, self.price, self.watcher)
        return attempt.to_speed(asked, self.plain_ms, self.bench.measure, rounds, start)[0]

    def _write(self, folder: Path, artifact: GraphModule, asked: float | None) -> Path:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        pixels = self.images.pixels
        metadata = onnx_metadata(self.run.inputs.model, {"role": "pruned", "target-speedup": asked})
        deployed = deploy(artifact, self.run.deployment, pixels, metadata)
        export_checked(deployed.model, folder / ARTIFACT, deployed.lowered.graph_module, pixels)
        return folder / ARTIFACT


def point_folder(asked: float | None) -> str:
    return "rewritten" if asked is None else f"{asked:g}x"


def run_sweep(run: SweepRun, watcher: Watcher) -> SweepResult:
    """Makes the points that are missing. Those that an earlier run of the same sweep recorded are not made again, and
    stay where fewer are asked for.

    Raises UserError, VerificationError and ExportMismatch; what was reached before is recorded by then.
    """
    images = run.calibration(watcher)
    front = read_module(run.inputs.model.module, images.pixels, watcher)
    refuse_others(front.kind(images.labels, run.inputs.task, watcher), "sweep")
    encode(front.graph_module)
    settings = run.basis(origins(front.graph_module, images), len(images))
    recorded, machine = read_points(run.out, settings, force=run.force)
    points = recorded
    if not {None, *run.speedups} <= {point.asked for point in recorded}:
        maker = _point_maker(run, front.graph_module, images, watcher)
        begin_steps(run.out, (TABLE, PICTURE))
        write_points(run.out, recorded, settings, machine)
        machine = environment()
        points = _complete(maker, recorded, settings, machine)
    _present(run, points, settings, machine, watcher)
    return SweepResult(points, missed(points))


def _point_maker(run: SweepRun, original: GraphModule, images: Images, watcher: Watcher) -> _PointMaker:
    """Raises UserError where the fastest of the sweep is out of reach."""
    asked = GoalRequest(run.goal, run.target, run.deployment, run.seed, fresh=run.force)
    bench = TargetBench(run.inputs.model.module, original, images.pixels, asked, watcher)
    price = bench.price()
    assert bench.plain is not None, "for a speed-up the bench times the plain export"
    most = price.speed_limit(bench.plain)
    if run.speedups[-1] >= most:
        raise UserError(
            f"`sweep` asks for up to {run.speedups[-1]:g}× and even without any attention and MLP the model is "
            f"{most:.2f}× as fast as its plain export: ask for less"
        )
    pruner = IterativePruner(
        copy.deepcopy(original).to(run.device),
        images.pixels.to(run.device),
        None if images.labels is None else images.labels.to(run.device),
        scored=SCORED,
        seed=run.seed,
        watcher=watcher,
        align=run.target.align,
        memory=run.memory,
    )
    return _PointMaker(run, original, images, bench, price, bench.plain, pruner, bench.open_plain(), watcher)


def _complete(
    maker: _PointMaker, recorded: Sequence[Point], settings: Basis, machine: Mapping[str, Any]
) -> tuple[Point, ...]:
    """All points. Makes those that are missing, from the slowest on, each from the one before, and records every one
    at once."""
    points = {point.asked: point for point in recorded}
    state = maker.pruner.start
    for asked in (None, *maker.run.speedups):
        known = points.get(asked)
        if known is not None:
            maker.watcher.say(f"{known.name}: {known.folder}/ is there already")
            state, maker.pruner.rounds = maker.state_of(known), known.rounds
            continue
        point, state = maker.make(asked, state)
        points[asked] = point
        maker.watcher.say(f"{point.name}: measured {point.speedup:.3f}×, KL {point.kl:.4f}, {point.folder}/")
        write_points(maker.run.out, by_speed(points.values()), settings, machine)
    return by_speed(points.values())


def _present(
    run: SweepRun, points: tuple[Point, ...], settings: Basis, machine: dict[str, Any], watcher: Watcher
) -> None:
    note = f"The picture is {PICTURE}."
    if has_matplotlib():
        write_aside(run.out / PICTURE, png_bytes(partial(draw_front, points, f"{settings['target']}")))
    else:
        note = f"There is no picture: {PICTURE} needs matplotlib (pip install 'vitfx[plot]', then the same command)."
        watcher.say(note)
    write_aside(run.out / TABLE, to_markdown(points, dict(settings), machine, note, run.inputs.remarks))

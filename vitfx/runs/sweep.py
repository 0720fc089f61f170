"""One run of `vitfx.prune --sweep`: models of rising speed, each reached from the one before, in a folder."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from torch.fx import GraphModule

from vitfx.deploy.deployment import deploy
from vitfx.deploy.export import compare_onnx, write_onnx
from vitfx.deploy.runtime import OnnxModel
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
from vitfx.runs.prune import Job
from vitfx.runs.sweep_points import Point, by_speed, draw_front, read_points, to_markdown, write_points
from vitfx.support.errors import UserError
from vitfx.support.files import remove_results, write_aside, writing
from vitfx.support.machine import environment
from vitfx.support.pictures import has_matplotlib, png_bytes
from vitfx.support.progress import Watcher
from vitfx.version import VERSION

TABLE, PICTURE, ARTIFACT = "sweep.md", "sweep.png", "pruned.onnx"
_STRIDE = 0.1
"""Of the whole price; what lies further is reached in several cuts, each scored anew."""
_VERIFIED_IMAGES = 64
_COMPARED_IMAGES = 8


@dataclass(frozen=True)
class Runner:
    """Makes points. plain: the session of the plain export. original: canonical, on the CPU."""

    job: Job
    original: GraphModule
    images: Images
    bench: TargetBench
    price: Price
    pursuit: IterativePruner
    plain: OnnxModel
    watcher: Watcher

    def make(self, asked: float | None, start: State) -> tuple[Point, State]:
        """The point and its model, written into the point's folder. Raises UserError, VerificationError and
        ExportMismatch."""
        state = start if asked is None else self._reach(asked, start)
        state = self.pursuit.finish(state)
        artifact = rewrite(self.original, state.plan).graph_module.eval()
        proof = verify(self.original, artifact, state.plan, self.images.pixels[:_VERIFIED_IMAGES])
        folder = self.job.out / point_folder(asked)
        path = self._write(folder, artifact, asked)
        write_plan(folder, state.plan)
        beside = measure_beside_plain(self.bench, self.plain, path, self.job.evaluation)
        point = Point(
            asked=asked,
            **beside.to_json(),
            params=proof.measured.parameters / proof.before.parameters,
            flops=proof.measured.flops / proof.before.flops,
            rounds=self.pursuit.rounds,
            folder=folder.name,
        )
        return point, state

    def state_of(self, point: Point) -> State:
        """The model of a point that an earlier run made. Raises UserError where its files are not usable."""
        plan = read_plan(self.job.out / point.folder)
        gone = {one.name: len(one.units) for one in plan.deletions}
        kept = {name: module.units - gone.get(name, 0) for name, module in self.pursuit.modules.items()}
        return State(plan, kept, {})

    def _reach(self, asked: float, start: State) -> State:
        plain = self.bench.plain
        assert plain is not None
        away = self.price.total(start.kept) - plain / asked
        rounds = min(ROUNDS, max(1, math.ceil(away / (_STRIDE * self.price.whole))))
        attempt = GoalSearch(self.pursuit, self.price, self.watcher)
        return attempt.to_speed(asked, plain, self.bench.measure, rounds, start)[0]

    def _write(self, folder: Path, artifact: GraphModule, asked: float | None) -> Path:
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        model = self.job.inputs.model
        metadata = {
            "vitfx": VERSION,
            "role": "pruned",
            "model": model.source,
            "model_fingerprint": model.fingerprint,
            "preprocess": json.dumps(model.preprocess.to_json()),
            "target-speedup": json.dumps(asked),
        }
        if model.classes is not None:
            metadata["classes"] = json.dumps(model.classes)
        pixels = self.images.pixels[:_COMPARED_IMAGES]
        made = deploy(artifact, self.job.deployment, pixels, metadata)
        write_onnx(made.model, folder / ARTIFACT)
        compare_onnx(folder / ARTIFACT, made.lowered.graph_module, pixels)
        return folder / ARTIFACT


def point_folder(asked: float | None) -> str:
    return "rewritten" if asked is None else f"{asked:g}x"


def run_sweep(job: Job, watcher: Watcher) -> tuple[Point, ...]:
    """All points that the folder has now: those that an earlier run of the same sweep recorded are not made again, and
    stay where fewer are asked for. job.speeds: rising.

    Raises UserError, VerificationError and ExportMismatch; what was reached before is recorded by then.
    """
    assert job.goal is not None
    watcher.say(job.inputs.splits.description)
    images = job.inputs.calibration(job.settings.samples, job.settings.seed, watcher.bar("loading"))
    front = read_module(job.inputs.model.module, images.pixels, watcher)
    encode(front.graph_module)
    settings = job.basis(origins(front.graph_module, images), len(images))
    recorded, machine = read_points(job.out, settings, force=job.force)
    points = {one.asked: one for one in recorded}
    asked: list[float | None] = [None, *job.speeds]
    if any(one not in points for one in asked):
        runner = _runner(job, front.graph_module, images, watcher)
        _begin(job.out, recorded, settings, machine)
        machine = environment()
        _complete(runner, points, asked, settings, machine)
    reached = by_speed(points.values())
    _present(job.out, reached, settings, machine, watcher)
    return reached


def _runner(job: Job, original: GraphModule, images: Images, watcher: Watcher) -> Runner:
    """Raises UserError where the fastest of the sweep is out of reach."""
    assert job.goal is not None
    bench = TargetBench(
        job.inputs.model.module,
        original,
        images.pixels,
        GoalRequest(*job.goal, job.deployment, job.settings.seed, fresh=job.force),
        watcher,
    )
    price = bench.price()
    assert bench.plain is not None
    most = price.speed_limit(bench.plain)
    if max(job.speeds) >= most:
        raise UserError(
            f"--sweep asks for up to {max(job.speeds):g}× and even without any attention and MLP the model is "
            f"{most:.2f}× as fast as its plain export: ask for less"
        )
    pursuit = IterativePruner(
        copy.deepcopy(original).to(job.device),
        images.pixels.to(job.device),
        None if images.labels is None else images.labels.to(job.device),
        scored=SCORED,
        seed=job.settings.seed,
        watcher=watcher,
        align=job.goal[1].align,
    )
    return Runner(job, original, images, bench, price, pursuit, bench.open_plain(), watcher)


def _begin(out: Path, points: tuple[Point, ...], settings: dict[str, Any], machine: dict[str, Any]) -> None:
    """What is recorded is written before anything is made: by this file a sweep that was stopped is known."""
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    remove_results(out, (TABLE, PICTURE))
    write_points(out, points, settings, machine)


def _complete(
    runner: Runner,
    points: dict[float | None, Point],
    asked: list[float | None],
    settings: dict[str, Any],
    machine: dict[str, Any],
) -> None:
    """Makes what is missing, from the slowest on, each from the one before it; records every one at once."""
    state = runner.pursuit.start()
    for one in asked:
        known = points.get(one)
        if known is not None:
            runner.watcher.say(f"{known.name}: {known.folder}/ is there already")
            state, runner.pursuit.rounds = runner.state_of(known), known.rounds
            continue
        points[one], state = runner.make(one, state)
        made = points[one]
        runner.watcher.say(f"{made.name}: measured {made.speedup:.3f}×, KL {made.kl:.4f}, {made.folder}/")
        write_points(runner.job.out, by_speed(points.values()), settings, machine)


def _present(
    out: Path, points: tuple[Point, ...], settings: dict[str, Any], machine: dict[str, Any], watcher: Watcher
) -> None:
    note = f"The picture is {PICTURE}."
    if has_matplotlib():
        write_aside(out / PICTURE, png_bytes(partial(draw_front, points, f"{settings['target']}")))
    else:
        note = f"There is no picture: {PICTURE} needs matplotlib (pip install 'vitfx[plot]', then the same command)."
        watcher.say(note)
    write_aside(out / TABLE, to_markdown(points, settings, machine, note))

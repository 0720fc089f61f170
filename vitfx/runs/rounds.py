"""One run of `vitfx.prune --rounds`: prune, recover, prune, recover, each by the job of its own command."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch.fx import GraphModule

from passes.cost import Cost, measure_cost
from vitfx.deploy.runtime import OnnxModel
from vitfx.discovery.run import origins
from vitfx.graph.canonical import read_module
from vitfx.images.image_set import Images
from vitfx.images.pixel_cache import default_cache
from vitfx.models.checkpoint import load_model
from vitfx.models.graph_json import encode
from vitfx.pruning.goal import Goal
from vitfx.pruning.goal_search import check_reach
from vitfx.pruning.target_bench import GoalRequest, ReferenceModel, TargetBench
from vitfx.recovery.retrain import Store
from vitfx.recovery.settings import SAMPLES, SAVE_SECONDS, RecoverSettings
from vitfx.runs.beside_plain import measure_beside_plain
from vitfx.runs.inputs import Inputs
from vitfx.runs.prune import Job, run_job
from vitfx.runs.recover import STATE, RecoverJob, run_recover
from vitfx.runs.rounds_steps import ARTIFACTS, PRUNED, RECOVERED, Rounds, Step, read_steps, to_markdown, write_steps
from vitfx.support.files import remove_results, write_aside, writing
from vitfx.support.machine import environment
from vitfx.support.progress import Watcher

TABLE = "rounds.md"


@dataclass(frozen=True)
class RoundsJob:
    """job: whose goal is that of the last round. command: as a user would type it."""

    job: Job
    rounds: Rounds
    command: str


@dataclass(frozen=True)
class Runner:
    """Makes steps. goals: of each round. original: with its canonical graph; cost: of that. bench: of the original.
    plain: the session of its plain export."""

    work: RoundsJob
    goals: list[Goal]
    original: ReferenceModel
    cost: Cost
    bench: TargetBench
    plain: OnnxModel
    watcher: Watcher

    def prune(self, number: int, goal: Goal) -> Step:
        """What the round before left is pruned, or the original. Raises what `run_job` raises."""
        job = self.work.job
        assert job.goal is not None
        first = number == 1
        # The bench has just measured the original anew if that was asked for.
        fresh = job.force and not first
        inputs = job.inputs if first else self._inputs(number - 1, RECOVERED)
        reference = None if first else self.original
        out = job.out / step_folder(number, PRUNED)
        run_job(
            replace(job, inputs=inputs, goal=(goal, job.goal[1]), out=out, force=fresh, reference=reference),
            self.watcher,
        )
        # Of a retraining that was stopped, of a model that is no more.
        Store(job.out / step_folder(number, RECOVERED) / STATE).discard()
        return self._measured(number, PRUNED, goal, None)

    def recover(self, number: int, goal: Goal) -> Step:
        """Raises what `run_recover` raises."""
        job = self.work.job
        report = run_recover(
            RecoverJob(
                inputs=self._inputs(number, PRUNED),
                teacher=job.inputs.model,
                evaluation=job.evaluation,
                settings=recovery_settings(self.work),
                also_baseline=False,
                deployment=job.deployment,
                device=job.device,
                out=job.out / step_folder(number, RECOVERED),
                cache=default_cache(),
                samples=SAMPLES,
                save_seconds=SAVE_SECONDS,
                force=False,
                command=self.work.command,
            ),
            self.watcher,
        )
        return self._measured(number, RECOVERED, goal, report["recovery"]["sentence"])

    def _inputs(self, number: int, kind: str) -> Inputs:
        """The data of the original with the model of a step."""
        path = self.work.job.out / step_folder(number, kind) / "pruned.pt"
        return replace(self.work.job.inputs, model=load_model(str(path)), arch=None)

    def _measured(self, number: int, kind: str, goal: Goal, said: str | None) -> Step:
        folder = self.work.job.out / step_folder(number, kind)
        beside = measure_beside_plain(self.bench, self.plain, folder / "pruned.onnx", self.work.job.evaluation)
        module = load_model(str(folder / "pruned.pt")).module
        assert isinstance(module, GraphModule)
        cost = measure_cost(module, self.bench.examples.shape[1:])
        return Step(
            round=number,
            kind=kind,
            asked=goal.value,
            **beside.to_json(),
            params=cost.parameters,
            flops=cost.flops,
            params_share=cost.parameters / self.cost.parameters,
            flops_share=cost.flops / self.cost.flops,
            said=said,
            folder=step_folder(number, kind),
        )


def step_folder(number: int, kind: str) -> str:
    return f"round-{number}/{kind}"


def recovery_settings(work: RoundsJob) -> RecoverSettings:
    return RecoverSettings(minutes=work.rounds.minutes, seed=work.job.settings.seed)


def run_rounds(work: RoundsJob, watcher: Watcher) -> tuple[list[Step], dict[str, Any]]:
    """All steps, and the settings. Steps that an earlier run of the same command finished are not made again.

    Raises UserError, VerificationError, ExportMismatch, and KeyboardInterrupt after Ctrl-C; what was done before is
    recorded by then.
    """
    job = work.job
    watcher.say(job.inputs.splits.description)
    images = job.inputs.calibration(job.settings.samples, job.settings.seed, watcher.bar("loading"))
    front = read_module(job.inputs.model.module, images.pixels, watcher)
    encode(front.graph_module)
    cost = measure_cost(front.graph_module, images.pixels.shape[1:])
    settings = _settings(work, images, origins(front.graph_module, images), cost)
    steps, machine = read_steps(job.out, settings, force=job.force)
    if len(steps) < 2 * work.rounds.count:
        runner = _runner(work, front.graph_module, cost, images, watcher)
        _begin(job.out, steps, settings, machine)
        machine = environment()
        _complete(runner, steps, settings, machine)
    else:
        watcher.say("all rounds are there already")
    last = job.out / steps[-1].folder
    for name in ARTIFACTS:
        write_aside(job.out / name, (last / name).read_bytes())
    write_aside(job.out / TABLE, to_markdown(steps, settings, machine))
    return steps, settings


def _runner(work: RoundsJob, original: GraphModule, cost: Cost, images: Images, watcher: Watcher) -> Runner:
    """Raises UserError where the goal is out of reach: that is told now, not after the rounds before the last."""
    job = work.job
    assert job.goal is not None
    module = job.inputs.model.module
    asked = GoalRequest(*job.goal, job.deployment, job.settings.seed, fresh=job.force)
    bench = TargetBench(module, original, images.pixels, asked, watcher)
    price = bench.price()
    check_reach(job.goal[0], price, plain=bench.plain)
    goals = work.rounds.goals(job.goal[0], 1.0 if bench.plain is None else bench.plain / price.whole)
    return Runner(work, goals, ReferenceModel(module, original), cost, bench, bench.open_plain(), watcher)


def _begin(out: Path, steps: list[Step], settings: Mapping[str, Any], machine: Mapping[str, Any]) -> None:
    """What is recorded is written before anything is made: by this file a run that was stopped is known."""
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    remove_results(out, (TABLE, *ARTIFACTS))
    write_steps(out, steps, settings, machine)


def _complete(runner: Runner, steps: list[Step], settings: Mapping[str, Any], machine: Mapping[str, Any]) -> None:
    """Makes what is missing in `steps`, and records every one at once."""
    job, rounds, watcher = runner.work.job, runner.work.rounds, runner.watcher
    for one in steps:
        watcher.say(f"{one.name}: {one.folder}/ is there already")
    goals = enumerate(runner.goals, 1)
    wanted = [(number, goal, make) for number, goal in goals for make in (runner.prune, runner.recover)]
    for number, goal, make in wanted[len(steps) :]:
        watcher.say(f"round {number} of {rounds.count}, {goal}: {make.__name__}")
        steps.append(make(number, goal))
        made = steps[-1]
        watcher.say(f"{made.name}: measured {made.speedup:.3f}×, KL {made.kl:.4f}, {made.folder}/")
        write_steps(job.out, steps, settings, machine)


def _settings(work: RoundsJob, images: Images, facts: Mapping[str, str], cost: Cost) -> dict[str, Any]:
    """All that a step depends on but the machine."""
    assert work.job.goal is not None
    goal = work.job.goal[0]
    return {
        **work.job.basis(facts, len(images)),
        "original_params": cost.parameters,
        "original_flops": cost.flops,
        "goal": str(goal),
        "goal_kind": goal.kind,
        "goal_value": goal.value,
        "rounds": work.rounds.count,
        "minutes": work.rounds.minutes,
        "recovery": recovery_settings(work).to_json(),
    }

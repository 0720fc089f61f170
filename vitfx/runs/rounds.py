"""One run of `vitfx.prune --rounds`: prune, recover, prune, recover, each as its own command does it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch.fx import GraphModule

from passes.cost import Cost, measure_cost
from vitfx.deploy.runtime import Session
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
from vitfx.runs.prune import run_goal
from vitfx.runs.prune_run import Basis, GoalRun, RoundsRun
from vitfx.runs.recover import STATE, run_recover
from vitfx.runs.recover_job import RecoverJob
from vitfx.runs.rounds_steps import ARTIFACTS, PRUNED, RECOVERED, Step, missed, read_steps, to_markdown, write_steps
from vitfx.runs.step_file import begin_steps
from vitfx.runs.tasks import refuse_others
from vitfx.support.files import write_aside
from vitfx.support.machine import environment
from vitfx.support.processes import Alone
from vitfx.support.progress import Watcher

TABLE = "rounds.md"


class RoundsSettings(Basis):
    """All that a step depends on, but the machine."""

    original_params: int
    original_flops: int
    goal: str
    goal_kind: str
    goal_value: float
    rounds: int
    minutes: float
    recovery: dict[str, Any]


@dataclass(frozen=True)
class RoundsResult:
    """Finished rounds."""

    steps: list[Step]
    settings: RoundsSettings
    missed: str | None  #: the goal that was missed and what was measured, in words


@dataclass(frozen=True)
class _StepMaker:
    """Makes steps."""

    run: RoundsRun
    goals: list[Goal]  #: of each round
    original: ReferenceModel
    cost: Cost  #: of the original
    bench: TargetBench  #: of the original
    plain: Session  #: the session of its plain export
    watcher: Watcher

    def prune(self, number: int, goal: Goal) -> Step:
        """Prunes what the round before left, or the original. Raises what `run_goal` raises."""
        run, first = self.run, number == 1
        out = run.out / step_folder(number, PRUNED)
        run_goal(
            GoalRun(
                inputs=run.inputs if first else self._inputs(number - 1, RECOVERED),
                evaluation=run.evaluation,
                device=run.device,
                out=out,
                # With force the bench has just measured the original anew.
                force=run.force and not first,
                deployment=run.deployment,
                target=run.target,
                samples=run.samples,
                seed=run.seed,
                memory=run.memory,
                goal=goal,
                reference=None if first else self.original,
            ),
            self.watcher,
        )
        # What an earlier retraining left is of a model that is no more.
        Store(run.out / step_folder(number, RECOVERED) / STATE).discard()
        return self._measured(number, PRUNED, goal, None)

    def recover(self, number: int, goal: Goal) -> Step:
        """Raises what `run_recover` raises."""
        run = self.run
        report = run_recover(
            RecoverJob(
                inputs=self._inputs(number, PRUNED),
                teacher=run.inputs.model,
                evaluation=run.evaluation,
                settings=recovery_settings(run),
                also_baseline=False,
                deployment=run.deployment,
                device=run.device,
                out=run.out / step_folder(number, RECOVERED),
                cache=default_cache(),
                samples=SAMPLES,
                save_seconds=SAVE_SECONDS,
                force=False,
                command=run.command,
            ),
            Alone(),
            self.watcher,
        )
        return self._measured(number, RECOVERED, goal, report["recovery"]["sentence"])

    def _inputs(self, number: int, kind: str) -> Inputs:
        """The data of the original with the model of a step."""
        path = self.run.out / step_folder(number, kind) / "pruned.pt"
        return replace(self.run.inputs, model=load_model(str(path)), arch=None)

    def _measured(self, number: int, kind: str, goal: Goal, sentence: str | None) -> Step:
        folder = self.run.out / step_folder(number, kind)
        beside = measure_beside_plain(self.bench, self.plain, folder / "pruned.onnx", self.run.evaluation)
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
            said=sentence,
            folder=step_folder(number, kind),
        )


def step_folder(number: int, kind: str) -> str:
    return f"round-{number}/{kind}"


def recovery_settings(run: RoundsRun) -> RecoverSettings:
    return RecoverSettings(minutes=run.rounds.minutes, seed=run.seed)


def run_rounds(run: RoundsRun, watcher: Watcher) -> RoundsResult:
    """Makes the steps that are missing; those that an earlier run of the same command finished are not made again.

    Raises UserError, VerificationError, ExportMismatch, and KeyboardInterrupt after Ctrl-C; what was done before is
    recorded by then.
    """
    images = run.calibration(watcher)
    front = read_module(run.inputs.model.module, images.pixels, watcher)
    refuse_others(front.kind(images.labels, run.inputs.task, watcher), "rounds")
    encode(front.graph_module)
    cost = measure_cost(front.graph_module, images.pixels.shape[1:])
    settings = _settings(run, run.basis(origins(front.graph_module, images), len(images)), cost)
    steps, machine = read_steps(run.out, settings, force=run.force)
    if len(steps) < 2 * run.rounds.count:
        maker = _step_maker(run, front.graph_module, cost, images, watcher)
        begin_steps(run.out, (TABLE, *ARTIFACTS))
        write_steps(run.out, steps, settings, machine)
        machine = environment()
        steps = _complete(maker, steps, settings, machine)
    else:
        watcher.say("all rounds are there already")
    last = run.out / steps[-1].folder
    for name in ARTIFACTS:
        write_aside(run.out / name, (last / name).read_bytes())
    write_aside(run.out / TABLE, to_markdown(steps, settings, machine, run.inputs.remarks))
    return RoundsResult(steps, settings, missed(steps[-1], run.goal))


def _step_maker(run: RoundsRun, original: GraphModule, cost: Cost, images: Images, watcher: Watcher) -> _StepMaker:
    """Raises UserError where the goal is out of reach: now, not after the rounds before the last."""
    module = run.inputs.model.module
    asked = GoalRequest(run.goal, run.target, run.deployment, run.seed, fresh=run.force)
    bench = TargetBench(module, original, images.pixels, asked, watcher)
    price = bench.price()
    check_reach(run.goal, price, plain=bench.plain)
    goals = run.rounds.goals(run.goal, 1.0 if bench.plain is None else bench.plain / price.whole)
    return _StepMaker(run, goals, ReferenceModel(module, original), cost, bench, bench.open_plain(), watcher)


def _complete(
    maker: _StepMaker, recorded: Sequence[Step], settings: RoundsSettings, machine: Mapping[str, Any]
) -> list[Step]:
    """All steps. Makes those that are missing, and records every one at once."""
    run, watcher, steps = maker.run, maker.watcher, list(recorded)
    for step in steps:
        watcher.say(f"{step.name}: {step.folder}/ is there already")
    goals = enumerate(maker.goals, 1)
    wanted = [(number, goal, make) for number, goal in goals for make in (maker.prune, maker.recover)]
    for number, goal, make in wanted[len(steps) :]:
        watcher.say(f"round {number} of {run.rounds.count}, {goal}: {make.__name__}")
        step = make(number, goal)
        steps.append(step)
        watcher.say(f"{step.name}: measured {step.speedup:.3f}×, KL {step.kl:.4f}, {step.folder}/")
        write_steps(run.out, steps, settings, machine)
    return steps


def _settings(run: RoundsRun, basis: Basis, cost: Cost) -> RoundsSettings:
    return {
        **basis,
        "original_params": cost.parameters,
        "original_flops": cost.flops,
        "goal": str(run.goal),
        "goal_kind": run.goal.kind,
        "goal_value": run.goal.value,
        "rounds": run.rounds.count,
        "minutes": run.rounds.minutes,
        "recovery": recovery_settings(run).to_json(),
    }

"""The int8 file is held to the limit of a goal as the float32 one is: by the runtime's own answers to held-out images.

Where it loses too much, the maps that int8 costs most go back to float32, up to a tenth of the work; where that is not
enough, the search deletes less.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from torch.fx import GraphModule

from vitfx.deploy.int8_choice import SPARED, dearest
from vitfx.deploy.precision_file import CALIBRATED_IMAGES, Rounding
from vitfx.deploy.precisions import INT8
from vitfx.pruning.goal import DROP, PROMISED, Goal
from vitfx.pruning.goal_search import GoalResult
from vitfx.pruning.iterative_pruner import HeldOutLoss, IterativePruner
from vitfx.pruning.limit import keeps
from vitfx.pruning.target_bench import GoalRequest, TargetBench

_SHARES = (SPARED, 0.03, 0.06, 0.1)
"""Of the work, in float32: beyond a tenth, deleting less is cheaper."""


@dataclass(frozen=True)
class Int8Verdict:
    """What a model's int8 file loses."""

    rounding: Rounding  #: that the loss is of
    quantized: int  #: how many maps are int8
    loss: HeldOutLoss
    kept: bool  #: whether the limit is

    def note(self, goal: Goal, held_out: int) -> str:
        """For the user."""
        spared = len(self.rounding.spared or ())
        counts = f"{self.quantized} linear maps rounded and {spared} left in float32"
        told = f"its int8 file, with {counts} by what they cost: {self.loss} on {held_out} held-out images"
        if self.kept:
            return told
        words = goal.words(self.loss.task)
        return (
            f"{told}, where {words} was asked for: no model found keeps that in int8, so allow more or take pruned.onnx"
        )


class Int8Limit:
    """Judges models by their int8 files, and remembers the last verdict."""

    def __init__(self, bench: TargetBench, pruner: IterativePruner) -> None:
        self.bench, self.pruner, self.goal = bench, pruner, bench.asked.goal
        self.calibration = pruner.fitted[:CALIBRATED_IMAGES].cpu()
        self.verdict: Int8Verdict | None = None

    def __call__(self, graph_module: GraphModule) -> bool:
        """Whether the model's int8 file keeps the limit, with as much of it in float32 as that takes."""
        for verdict in self._attempts(graph_module):
            self.verdict = verdict
            if verdict.kept:
                break
        assert self.verdict is not None
        for note in self.notes:
            self.bench.watcher.say(note)
        return self.verdict.kept

    @property
    def notes(self) -> tuple[str, ...]:
        """For the user."""
        return () if self.verdict is None else (self.verdict.note(self.goal, len(self.pruner.held_out)),)

    def _attempts(self, graph_module: GraphModule) -> Iterator[Int8Verdict]:
        """With ever more in float32."""
        whole = self.bench.in_int8(graph_module, self.calibration)
        costs = whole.costs(self.calibration, self.pruner.measure)
        for names in dict.fromkeys(dearest(costs, share) for share in _SHARES):
            int8 = whole.sparing(names)
            loss = self.pruner.loss_of(self.bench.answers(int8.model, self.pruner.held_out))
            rounding = Rounding(self.calibration, self.pruner.measure, names)
            yield Int8Verdict(rounding, int8.quantized, loss, keeps(loss, self.goal))


def aim_in_float32(bench: TargetBench, pruner: IterativePruner) -> tuple[Goal, tuple[str, ...]]:
    """The goal of the search in float32, and a note where that leaves room for what int8 will cost on top."""
    goal = bench.asked.goal
    if goal.priced or bench.asked.target.precision != INT8:
        return goal, ()
    bench.watcher.say("measuring what int8 costs the whole model")
    int8 = bench.in_int8(bench.original, pruner.fitted[:CALIBRATED_IMAGES].cpu())
    cost = pruner.loss_of(bench.answers(int8.model, pruner.held_out))
    extra = max(0.0, cost.drop or 0.0) if goal.kind == DROP else cost.kl
    # Where int8 takes more than half of it, pruning still has the other half.
    aim = replace(goal, value=max(goal.value - extra, goal.value / 2))
    task = pruner.measure.kind
    note = f"int8 costs the whole model {cost} on the same images, so that pruning alone was allowed {aim.words(task)}"
    bench.watcher.say(note)
    return aim, (note,)


def rounding_of(
    asked: GoalRequest, limit: Int8Limit | None, result: GoalResult, pruner: IterativePruner
) -> Rounding | None:
    """How the int8 file is made: as it was judged, and where a speed was asked for, as it was timed, unless there is
    speed to spare."""
    if asked.target.precision != INT8:
        return None
    if limit is not None and limit.verdict is not None:
        return limit.verdict.rounding
    speedup = result.speedup
    scarce = speedup is not None and speedup.value < (1 + PROMISED) * asked.goal.value
    return Rounding(pruner.fitted[:CALIBRATED_IMAGES].cpu(), pruner.measure, () if scarce else None)

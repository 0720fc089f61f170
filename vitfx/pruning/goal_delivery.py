"""What a goal ends with: searched for, proved, healed, and where it is int8 that is asked for, judged by that."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vitfx.deploy.precisions import INT8
from vitfx.graph.verify import Verification, rewritten
from vitfx.images.image_set import Images
from vitfx.pruning.compensation import Compensated, with_means
from vitfx.pruning.cost_model import Price
from vitfx.pruning.goal import Goal
from vitfx.pruning.goal_search import GoalResult, reach_goal
from vitfx.pruning.healing import Heal, Healed, healed
from vitfx.pruning.int8_limit import Int8Limit
from vitfx.pruning.iterative_pruner import IterativePruner
from vitfx.pruning.prune_by_circuit import carry_out
from vitfx.pruning.target_bench import TargetBench


@dataclass(frozen=True)
class Ended:
    """The end of a search for a goal."""

    result: GoalResult  #: with the loss of what is delivered
    verification: Verification  #: of the artifact before it was healed
    compensated: Compensated  #: likewise
    healed: Healed  #: what is delivered
    limit: Int8Limit | None = None  #: what judged its int8 file, if anything did

    @property
    def int8_notes(self) -> tuple[str, ...]:
        """For the user."""
        return () if self.limit is None else self.limit.notes


def search_and_heal(
    bench: TargetBench,
    pruner: IterativePruner,
    aim: Goal,
    price: Price,
    images: Images,
    names: tuple[str, ...],
    heal: Heal | None,
) -> Ended:
    """Searches, proves and heals. names: of all images of the pruner."""
    original, held_out = bench.original, names[-len(pruner.held_out) :]
    limit = Int8Limit(bench, pruner) if bench.asked.target.precision == INT8 and not aim.priced else None
    # A pruned model may lose more by rounding than the whole one, by which the aim was set.
    for each in (aim,) if limit is None else (aim, replace(aim, value=aim.value / 2)):
        result = reach_goal(
            pruner, each, price, bench.watcher, plain=bench.plain, measure=bench.measure, whole=bench.whole
        )
        artifact, verification = carry_out(original, result.state.plan, images, bench.merging, bench.watcher)
        changed = bool(result.state.plan.deletions) or bench.merging is not None
        delivered = healed(artifact, pruner, original, held_out, result.held_out_loss, heal if changed else None)
        for note in delivered.notes:
            bench.watcher.say(note)
        if limit is None or limit(delivered.module):
            break
    compensated = _compensated(pruner, result)
    return Ended(replace(result, held_out_loss=delivered.loss), verification, compensated, delivered, limit)


def _compensated(pruner: IterativePruner, result: GoalResult) -> Compensated:
    original, plan = pruner.original, result.state.plan
    fitted, held_out = len(pruner.fitted), len(pruner.held_out)
    if not plan.deletions:
        return Compensated(plan, "none")
    mean = with_means(original, plan.without_constants(), pruner.scored)
    kl_mean = pruner.loss_of(pruner.answers(rewritten(original, mean, pruner.merging))).kl
    return Compensated(
        plan,
        "ridge",
        images=fitted,
        held_out=held_out,
        kl=result.held_out_loss.kl,
        kl_mean=kl_mean,
        task=pruner.measure.kind,
    )

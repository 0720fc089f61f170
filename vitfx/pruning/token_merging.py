"""Which tokens of a model merge: as the user says, or as they did in the model given.

Units are chosen, and survivors refitted, on the model in which no tokens merge, and merges come last. Streams of all
tokens say more of a unit than those of averages do, and the KL divergence of merges and that of deletions hardly
interact: half from each costs less than half of what either costs alone. What is priced, measured and promised is the
model with its merges.
"""

from __future__ import annotations

from torch import Tensor
from torch.fx import GraphModule

from passes.base import PassError
from passes.merge_tokens import MergeBySchedule, token_counts
from passes.plan import DeletionPlan
from passes.token_schedule import TokenSchedule
from vitfx.graph.canonical import Canonical
from vitfx.graph.verify import rewritten
from vitfx.support.errors import UserError

AUTO = "auto"
"""In place of a schedule: the search for a goal chooses one."""


def choose_merging(front: Canonical, tokens: str | None, pixels: Tensor) -> MergeBySchedule | None:
    """The pass that merges tokens, None where none merge.

    tokens: a schedule, see `passes.token_schedule.TokenSchedule.parse`; None for that of the model given
    pixels: two examples or more
    Raises UserError for other texts and where these tokens can't merge.
    """
    if tokens == AUTO:
        raise UserError("auto chooses tokens for a goal: give a schedule, such as r=4, where there is none")
    try:
        schedule = front.schedule
        if tokens is not None:
            schedule = TokenSchedule.parse(tokens, token_counts(front.graph_module, pixels))
        if not schedule:
            return None
        merging = MergeBySchedule(schedule, pixels[:2])
        with_merges(front.graph_module, merging)
    except PassError as error:
        raise UserError(error.reason) from error
    return merging


def with_merges(graph_module: GraphModule, merging: MergeBySchedule | None) -> GraphModule:
    """A graph in which tokens merge, see `vitfx.graph.verify.rewritten`, or the very same."""
    return graph_module if merging is None else rewritten(graph_module, DeletionPlan(), merging)


def merging_note(graph_module: GraphModule, merging: MergeBySchedule | None) -> tuple[str, ...]:
    """What the user is told of the tokens that are left. graph_module: in which none merge."""
    if merging is None:
        return ()
    counts = token_counts(graph_module, merging.example)
    left = ", ".join(map(str, merging.schedule.tokens_left(counts)))
    return (f"tokens merge by the schedule {merging.schedule}: of {counts.tokens}, behind the blocks {left} are left",)

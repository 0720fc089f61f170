"""From a price to a pruned model: delete the units worth least, refit the survivors, and score all units anew.

A one-shot cut trusts the whole model's scores for a model that has lost a third of its units. Here pruning goes in
rounds. Each scores the model that the last round left and chooses anew among all units, so that a unit that turned out
to be missed comes back, and one that turned out to be worth less goes in its place.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torch.fx import GraphModule

from passes.base import PassError
from passes.merge_tokens import MergeBySchedule
from passes.plan import DeletionPlan
from vitfx.graph.divergence import Classes, make_divergence
from vitfx.graph.kinds import WORDS
from vitfx.graph.metrics import right
from vitfx.graph.stages import read_stages, streams_at, sublayers_of
from vitfx.graph.verify import rewritten
from vitfx.pruning.budget import select
from vitfx.pruning.compensation import Compensator
from vitfx.pruning.cost_model import Price
from vitfx.pruning.expected_drop import ExpectedDrop, mean_and_error
from vitfx.pruning.merged_refit import refit_with_merges
from vitfx.pruning.removal_order import RemovalOrder, removal_order
from vitfx.pruning.unit_worth import planned_projections, unit_worth
from vitfx.support.errors import UserError
from vitfx.support.progress import Watcher
from vitfx.support.text import GIB, amount

_BATCH = 32
_COMPARED = 256
"""Held-out images that say whether survivors gained by a refit where tokens merge."""


@dataclass(frozen=True)
class State:
    """A pruned model."""

    plan: DeletionPlan  #: with refits
    kept: Mapping[str, int]  #: how many units each sublayer keeps
    costs: Mapping[str, float]  #: by sublayer, the predicted cost of what is deleted there, in nats an image


@dataclass(frozen=True)
class HeldOutLoss:
    """What a pruned model loses on the held-out images."""

    kl: float  #: nats an image from the original
    drop: float | None  #: points of top-1 lost, see `vitfx.pruning.expected_drop`; None without labels
    error: float | None  #: the standard error of `drop`, None where it is not known
    task: str = "classes"  #: what `kl` and `drop` are of, see `vitfx.graph.kinds`

    def to_json(self) -> dict[str, float | None]:
        """Without the words."""
        return {"kl": self.kl, "drop": self.drop, "error": self.error}

    def __str__(self) -> str:
        words = WORDS[self.task]
        name = words.divergence
        if self.drop is None:
            return f"{name} {self.kl:.4f}"
        error = "" if self.error is None else f" ± {self.error:.1f}"
        return f"{name} {self.kl:.4f}, {self.drop:+.1f}{error} points of {words.metric} lost"


class IterativePruner:
    """Prunes one model to ever lower prices, on one set of images.

    The last of the images (N, C, H, W) are held out from all fitting and scoring. The first `scored` of the others
    score the units, and survivors are refitted on them between cuts; the final refit uses all of the others.
    held_out: how many are held out, a quarter where it is None.
    align: the widths of pruned MLPs are multiples of it.
    task: the model's kind of answers, one of `vitfx.graph.kinds.KINDS`.
    merging: merges tokens of what is judged on the held-out images, see `vitfx.pruning.token_merging`.
    memory: GiB at most for the original's streams, which are kept between cuts, and otherwise computed again for each.
    """

    def __init__(
        self,
        original: GraphModule,
        pixels: Tensor,
        labels: Tensor | None,
        *,
        scored: int,
        seed: int,
        watcher: Watcher,
        held_out: int | None = None,
        align: int = 1,
        task: str = "classes",
        merging: MergeBySchedule | None = None,
        memory: float | None = None,
    ) -> None:
        held = max(1, len(pixels) // 4) if held_out is None else held_out
        self.original, self.watcher, self.seed, self.merging = original, watcher, seed, merging
        self.fitted, self.held_out = pixels[:-held], pixels[-held:]
        self.labels = None if labels is None else labels[-held:]
        self.scored = self.fitted[:scored]
        self.stages = read_stages(original)
        self.modules = sublayers_of(self.stages)
        self.multiples = {name: align for name, module in self.modules.items() if module.kind != "head"}
        self.expected = _logits(original, self.held_out, watcher)
        self.measure = make_divergence(task, self.expected)
        keep = memory is None or self._fit(memory)
        keeping = watcher.bar("keeping the original's streams")
        self._quick = Compensator(original, self.scored, keep=keep, progress=keeping)
        self.rounds = 0
        self._last: tuple[DeletionPlan, Mapping[str, RemovalOrder]] | None = None
        self._judged: tuple[DeletionPlan, MergeBySchedule | None, int, HeldOutLoss] | None = None

    @torch.no_grad()
    def _fit(self, memory: float) -> bool:
        """Whether the original's streams of the images that score fit into so many GiB."""
        size = sum(reading.stream.nbytes for reading in streams_at(self.stages, self.scored[:1])) * len(self.scored)
        fits = size <= memory * GIB
        if not fits:
            self.watcher.say(f"the original's streams would take {amount(size)}: they are computed again for every cut")
        return fits

    @cached_property
    def start(self) -> State:
        """The whole model."""
        return State(DeletionPlan(), {name: module.units for name, module in self.modules.items()}, {})

    def cut(self, state: State, price: Price, most: float) -> State:
        """Scores the model anew and prunes it to a total price of `most`, and more where tokens could not merge without
        a head that this would take. Raises UserError where no model is that cheap."""
        orders = self._orders(state.plan)
        counts = select(orders, price, most, self.multiples)
        if counts is None:
            raise UserError(
                f"without any attention or MLP the model still has {price.least / price.whole:.0%} of its {price.noun} "
                f"and not the {most / price.whole:.0%} asked for: ask for a smaller reduction"
            )
        plan = self._deletions(orders, counts)
        if plan.deletions:
            plan = self._quick(plan, self.watcher.bar("refitting")).plan
        kept = {name: module.units - counts[name] for name, module in self.modules.items()}
        return State(plan, kept, {name: float(orders[name].costs[count]) for name, count in counts.items()})

    @cached_property
    def _expected_drop(self) -> ExpectedDrop:
        assert isinstance(self.measure, Classes) and self.labels is not None
        return ExpectedDrop(self.measure, self.expected, self.labels)

    def _deletions(self, orders: Mapping[str, RemovalOrder], counts: dict[str, int]) -> DeletionPlan:
        """Of so many units of each sublayer. Attentions give one head back, those that it costs most first, until there
        are enough keys for tokens to merge by."""
        heads = [name for name, module in self.modules.items() if module.kind == "head"]
        gone = [name for name in heads if 0 < counts[name] == self.modules[name].units]
        gone.sort(key=lambda name: float(orders[name].costs[-1] - orders[name].costs[-2]))
        while True:
            plan = DeletionPlan.deleting(self.original, {name: orders[name].units[:n] for name, n in counts.items()})
            if self.merging is None or not gone:
                return plan
            try:
                rewritten(self.original, plan, self.merging)
                return plan
            except PassError:
                counts[gone.pop()] -= 1

    def _orders(self, plan: DeletionPlan) -> Mapping[str, RemovalOrder]:
        """Of the whole model and of the last one kept, for where a cut was too deep the next begins from the same."""
        if not plan.deletions:
            return self._whole_orders
        if self._last is None or self._last[0] is not plan:
            self._last = plan, self._removal_orders(plan)
        return self._last[1]

    @cached_property
    def _whole_orders(self) -> Mapping[str, RemovalOrder]:
        """Where nothing is deleted yet: searches for a token schedule cut the whole model again and again."""
        return self._removal_orders(DeletionPlan())

    def _removal_orders(self, plan: DeletionPlan) -> Mapping[str, RemovalOrder]:
        worth = unit_worth(
            self.stages,
            planned_projections(self.stages, plan),
            self.scored,
            seed=self.seed + self.rounds,
            measure=self.measure,
            progress=self.watcher.bar("scoring"),
        )
        self.rounds += 1
        orders, report = {}, self.watcher.bar("ordering")
        for number, (name, units) in enumerate(worth.items(), start=1):
            orders[name] = removal_order(units.fisher, units.covariance, self.modules[name].out.weight.detach())
            report(number, len(worth))
        return orders

    def finish(self, state: State) -> State:
        """The same deletions, with survivors refitted on all images but those held out: where tokens merge, to what
        they read there, unless the held-out images lose by that."""
        if not state.plan.deletions:
            return state
        if self.merging is not None:
            progress = self.watcher.bar("refitting where tokens merge")
            plan = refit_with_merges(self.original, state.plan, self.merging, self.fitted, progress)
            refitted = replace(state, plan=plan)
            before, after = (self.held_out_loss(each, _COMPARED) for each in (state, refitted))
            self.watcher.say(f"survivors refitted where tokens merge: from {before} to {after}")
            if after.kl < before.kl:
                return refitted
        if len(self.scored) == len(self.fitted):
            return state
        progress = self.watcher.bar("refitting on all images")
        plan = Compensator(self.original, self.fitted)(state.plan.without_constants(), progress).plan
        return replace(state, plan=plan)

    def held_out_loss(self, state: State, most: int | None = None) -> HeldOutLoss:
        """most: how many of the held-out images are enough, None for all. What was judged last is not run again."""
        count = len(self.held_out[:most])
        if self._judged is None or self._judged[0] is not state.plan or self._judged[1:3] != (self.merging, count):
            if state.plan.deletions or self.merging is not None:
                answers = self.answers(rewritten(self.original, state.plan, self.merging), most)
            else:
                answers = self.expected[:count]
            self._judged = state.plan, self.merging, count, self.loss_of(answers)
        return self._judged[3]

    def answers(self, graph_module: GraphModule, most: int | None = None) -> Tensor:
        """Of any model, on the CPU or where the images are, to the held-out images or the first `most` of them."""
        pixels = self.held_out[:most].to(next(graph_module.parameters()).device)
        return _logits(graph_module, pixels, self.watcher)

    def loss_of(self, logits: Tensor) -> HeldOutLoss:
        """Of answers to the first of the held-out images, or to all of them."""
        logits = logits.to(self.expected.device)
        expected = self.expected[: len(logits)]
        kl = float(self.measure(expected, logits).mean())
        task = self.measure.kind
        if self.labels is None:
            return HeldOutLoss(kl, None, None, task)
        if isinstance(self.measure, Classes):
            return HeldOutLoss(kl, *self._expected_drop(logits), task)
        labels = self.labels[: len(logits)].to(logits.device)
        before, after = (right(self.measure, answers, labels) for answers in (expected, logits))
        if before is None or after is None:
            return HeldOutLoss(kl, None, None, task)
        if task == "labels":
            # F1 is no mean over images.
            sums = [each.sum(dim=0) for each in (before, after)]
            shares = [float(part / of) if of else 0.0 for part, of in sums]
            return HeldOutLoss(kl, 100 * (shares[0] - shares[1]), None, task)
        difference = 100 * (before - after)[:, 0] / before[:, 1]
        return HeldOutLoss(kl, *mean_and_error(difference), task)


@torch.no_grad()
def _logits(graph_module: GraphModule, pixels: Tensor, watcher: Watcher) -> Tensor:
    batches, answers, report = pixels.split(_BATCH), [], watcher.bar("evaluating held-out images")
    for number, batch in enumerate(batches):
        report(number * _BATCH, len(pixels))
        answers.append(graph_module(batch))
    report(len(pixels), len(pixels))
    return torch.cat(answers)

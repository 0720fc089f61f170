"""What a model costs with merged tokens, in a goal's unit."""

from __future__ import annotations

from functools import cached_property

from torch.fx import GraphModule

from passes.base import PassError
from passes.cost import measure_cost, tokens_at
from passes.merge_tokens import MergeBySchedule, token_counts
from passes.token_schedule import TokenSchedule
from vitfx.graph.verify import tokens_of
from vitfx.pruning.cost_model import Price
from vitfx.pruning.target_bench import TargetBench
from vitfx.pruning.token_merging import with_merges


class MergePrices:
    """Parameters and FLOPs are counted. Of times only the whole model's is measured: a sublayer's follows its tokens,
    so that no schedule needs a table of its own."""

    def __init__(self, bench: TargetBench, price: Price) -> None:
        """price: of the model in which no tokens merge."""
        self.bench, self.unmerged = bench, price
        self._original, self._example = bench.original, bench.examples[:2]
        self._measured: dict[TokenSchedule, float] = {}

    def price(self, merging: MergeBySchedule | None) -> Price:
        if merging is None:
            return self.unmerged
        merged = with_merges(self._original, merging)
        if self.bench.counts:
            return self.bench.counted(merged)
        tokens = tokens_of(self._original, self._example)
        before, after = tokens_at(self._original, tokens), tokens_at(merged, tokens)
        sublayers = {
            name: cost * (after[name] / before[name]) if before[name] else cost
            for name, cost in self.unmerged.sublayers.items()
        }
        whole = self.unmerged.whole * self._time_share(merging)
        return Price(self.unmerged.unit, whole - sum(float(cost[-1]) for cost in sublayers.values()), sublayers)

    def estimate(self, merging: MergeBySchedule) -> float:
        """The share of the price that is left before anything is deleted. Of times it is the share of the FLOPs, and
        for every merge what its own operators take."""
        if self.bench.counts:
            return self.price(merging).whole / self.unmerged.whole
        return self._flops_share(merging) + len(merging.schedule.merges) * self._each

    def _flops_share(self, merging: MergeBySchedule) -> float:
        return self._flops(with_merges(self._original, merging)) / self._whole_flops

    @cached_property
    def _whole_flops(self) -> int:
        return self._flops(self._original)

    def _flops(self, graph_module: GraphModule) -> int:
        return measure_cost(graph_module, self._example.shape[1:]).flops

    def _time_share(self, merging: MergeBySchedule) -> float:
        if merging.schedule not in self._measured:
            self._measured[merging.schedule] = self.bench.time_share(merging)
        return self._measured[merging.schedule]

    @cached_property
    def _each(self) -> float:
        """The share of the model's time that the operators of one merge take, measured where one token merges in every
        block, from the first in which that is possible."""
        counts = token_counts(self._original, self._example)
        for first in range(counts.blocks):
            gentle = MergeBySchedule(TokenSchedule.constant(1, counts, first), self._example)
            try:
                flops = self._flops_share(gentle)
            except PassError:
                continue
            return max(0.0, self._time_share(gentle) - flops) / len(gentle.schedule.merges)
        return 0.0

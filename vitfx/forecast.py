"""What removing some of a reader's edges would cost, together and on top of one another, without running the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Forecast:
    """D_KL(G‖H) to second order in the removals of a reader's edges, around the circuit as it stood.

    Removing a set S costs Σ_s slope_s + ½ Σ_{s,t} fisher_st: of two edges that carry the same, the second costs more.
    slope: (W,), fisher: (W, W), for the reader's W writers in their order; float64 on the CPU, in nats an image.
    """

    slope: Tensor
    fisher: Tensor

    def alone(self) -> Tensor:
        """What removing each edge by itself would cost: (W,)."""
        return self.slope + self.fisher.diagonal() / 2

    def after(self, gone: Sequence[int]) -> Tensor:
        """What removing each edge would cost once those at `gone` are removed: (W,)."""
        return self.alone() + self.fisher[list(gone)].sum(dim=0)

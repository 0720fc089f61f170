"""What removing some of a sublayer's edges would cost, on top of one another, without running the model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Forecast:
    """D_KL(G‖H) to second order in the removals of a sublayer's edges, around the circuit as it stood.

    Removing a set S costs Σ_s slope_s + c/2 Σ_{s,t} fisher_st: of two edges that carry the same, the second costs more.
    slope: (E,), fisher: (E, E), for E edges in their order; float64 on the CPU, in nats an image. kl: D_KL(G‖H) as it
    stood, exact. order: this process's images by what they add to it, most first. curvature: c, see `Curvature`.
    """

    slope: Tensor
    fisher: Tensor
    kl: float = 0.0
    order: tuple[int, ...] | None = None
    curvature: float = 1.0

    def alone(self) -> Tensor:
        """What removing each edge by itself would cost: (E,)."""
        return self.slope + self.curvature * self.fisher.diagonal() / 2

    def together(self, edges: Sequence[int]) -> tuple[float, float]:
        """What removing these would cost by slope, and by the Fisher information where c is 1."""
        at = list(edges)
        return float(self.slope[at].sum()), float(self.fisher[at][:, at].sum()) / 2

    def steeper(self, edges: Sequence[int]) -> Tensor:
        """What removing these adds to the slopes: (E,)."""
        return self.curvature * self.fisher[list(edges)].sum(dim=0)

    def moved(self, edges: Sequence[int], times: int) -> Forecast:
        """Its slopes once these edges are removed, or with times = −1 put back."""
        return replace(self, slope=self.slope + times * self.steeper(edges))


def marginals(group: Sequence[int], here: Forecast, there: Forecast) -> Tensor:
    """What each edge of a group costs at its place in it, from the slopes before and behind the whole: (group,).

    On the way from here to there each slope is taken to change as the others before it go, each by as much as it
    matters (the root of its Fisher information), and by its own Fisher information, of which half counts wherever it
    stands. Exact where D_KL is quadratic and edges change each other's slopes by as much as they matter; the sum can be
    held against there.kl − here.kl, which is exact.
    """
    at = list(group)
    first, last, own = here.slope[at], there.slope[at], here.curvature * here.fisher.diagonal()[at]
    matters = own.sqrt()
    own = own.minimum((last - first).clamp(min=0))
    before, others = matters.cumsum(0) - matters, matters.sum() - matters
    places = before / others.clamp(min=torch.finfo(others.dtype).tiny)
    return first + own / 2 + places * (last - first - own)


class Curvature:
    """By how much more D_KL(G‖H) bends than the Fisher information says, learned from what removals cost.

    The Fisher information leaves out that the logits themselves are not linear in what is removed: on the way down a
    slope, where removals are sought, that is most of it. From the costs of removals, slope + c · curvature each, c is
    their least squares where each counts by its curvature up to `scale`, and inversely beyond; one removal of that
    size stands for c = 1.
    """

    def __init__(self, scale: float) -> None:
        """scale: nats an image."""
        self._scale = max(scale, sys.float_info.min)
        self._moment = self._square = self._scale / 2

    @property
    def times(self) -> float:
        """c, never less than 1."""
        return max(self._moment / self._square, 1.0)

    def learn(self, by_slope: float, by_fisher: float, cost: float) -> None:
        """Of one removal: what it would cost by slope and by the Fisher information alone, and what it cost."""
        weight = by_fisher / (self._scale + by_fisher)
        self._moment += weight * (cost - by_slope)
        self._square += weight * by_fisher

"""What removing edges of a sublayer would cost, one on top of another, without running the model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Forecast:
    """D_KL(G‖H) to second order in the removals of E edges into a sublayer, around the circuit as it stood.

    Removing a set S costs Σ_s slope_s + c/2 Σ_{s,t} fisher_st: where two edges carry the same, the second costs more.
    Tensors are float64 on the CPU, in nats an image.
    """

    slope: Tensor  #: (E,)
    fisher: Tensor  #: (E, E)
    kl: float = 0.0  #: D_KL(G‖H) as it stood, exact
    order: tuple[int, ...] | None = None  #: this process's images by what they add to it, most first
    curvature: float = 1.0  #: c, see `Curvature`

    def alone(self) -> Tensor:
        """What removing each edge by itself would cost: (E,)."""
        return self.slope + self.curvature * self.fisher.diagonal() / 2

    def together(self, edges: Sequence[int]) -> tuple[float, float]:
        """What removing these would cost by their slopes, and what by the Fisher information if c were 1."""
        at = list(edges)
        return float(self.slope[at].sum()), float(self.fisher[at][:, at].sum()) / 2

    def steeper(self, edges: Sequence[int]) -> Tensor:
        """What removing these adds to the slopes: (E,)."""
        return self.curvature * self.fisher[list(edges)].sum(dim=0)

    def moved(self, edges: Sequence[int], times: int) -> Forecast:
        """The forecast once these edges are removed; with times = −1, once they are put back."""
        return replace(self, slope=self.slope + times * self.steeper(edges))


def marginals(group: Sequence[int], here: Forecast, there: Forecast) -> Tensor:
    """What each edge of a group costs at its place in it, from the slopes before and after the group goes: (group,).

    An edge's slope changes as the edges before it go, by each in proportion to the root of that edge's Fisher
    information, and by the edge's own Fisher information, half of which counts wherever the edge stands. That is exact
    where D_KL is quadratic and edges change each other's slopes in this proportion. The sum can be checked against
    there.kl − here.kl, which is exact.
    """
    at = list(group)
    first, last, own = here.slope[at], there.slope[at], here.curvature * here.fisher.diagonal()[at]
    matters = own.sqrt()
    own = own.minimum((last - first).clamp(min=0))
    before, others = matters.cumsum(0) - matters, matters.sum() - matters
    places = before / others.clamp(min=torch.finfo(others.dtype).tiny)
    return first + own / 2 + places * (last - first - own)


class Curvature:
    """How many times more D_KL(G‖H) bends than the Fisher information says, learned from what removals cost.

    The Fisher information leaves out that the logits are not linear in what is removed. Where slopes lead downwards,
    which is where removals are sought, that is most of the curvature. Each removal costs slope + c · curvature; c is
    fitted to these costs by least squares, in which small curvatures count more than large ones, from `scale` on. One
    removal of that size stands for c = 1 to begin with.
    """

    def __init__(self, scale: float) -> None:
        """scale: in nats an image."""
        self._scale = max(scale, sys.float_info.min)
        self._moment = self._square = self._scale / 2

    @property
    def times(self) -> float:
        """c, never less than 1."""
        return max(self._moment / self._square, 1.0)

    def learn(self, by_slope: float, by_fisher: float, cost: float) -> None:
        """Takes in one removal: its forecast cost by slope and by the Fisher information alone, and what it cost."""
        weight = by_fisher / (self._scale + by_fisher)
        self._moment += weight * (cost - by_slope)
        self._square += weight * by_fisher

"""What discovery algorithms and the engines under them agree on.

An engine visits the edge graph's readers from the output backwards. For the reader at hand it answers what D_KL(G‖H)
becomes if some more of its edges are removed. The algorithm asks, decides, and tells the engine which edges go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from vitfx.circuits.circuit import Decision, Edge, Reader, Writer
from vitfx.discovery.basis.calibration import Calibration
from vitfx.discovery.basis.forecast import Forecast

BATCH = 16
"""Images run at a time: few enough for a batch's activations to stay in the caches, and for a hopeless trial to end
early."""


@dataclass(frozen=True)
class Trial:
    """The answer to what D_KL(G‖H) becomes without some edges."""

    kl: float  #: nats an image; where not exact, it is at least this, and more than was allowed
    exact: bool
    order: tuple[int, ...] | None = None  #: where exact: this process's images by what they add to it, most first


@dataclass(frozen=True)
class Limits:
    """Up to which D_KL(G‖H) edges are removed, in nats an image."""

    tau: float  #: an edge is removed if that raises D_KL(G‖H) by less
    max_kl: float = float("inf")  #: what D_KL(G‖H) may reach at most, whatever τ says

    def allow(self, kl_new: float, kl: float) -> bool:
        return kl_new - kl < self.tau and kl_new <= self.max_kl


Chosen = slice | Tensor
"""Some of this process's images: a slice, or their indices."""


class Visit(Protocol):
    """One reader and the writers that it reads, in the circuit as decided so far."""

    reader: Reader
    writers: Sequence[Writer]
    idle: bool  #: no chain of kept edges leads from the reader to the logits, so its edges make no difference

    def kl_without(self, writers: Sequence[Writer], allowed: Callable[[float], bool]) -> Trial:
        """D_KL(G‖H) without these edges, on top of those removed.

        allowed: asked about each partial sum over the images, which only grows; once it says no, the trial ends.
        """

    def remove(self, writers: Sequence[Writer], order: tuple[int, ...] | None = None) -> None:
        """Removes these edges for good.

        order: of their trial. Later trials begin with the images that add most, which are the first to show that a
        removal is not allowed.
        """


class WideVisit(Protocol):
    """All readers of one sublayer at once, in the circuit as decided so far."""

    edges: Sequence[Edge]  #: into readers from which a chain of kept edges leads to the logits
    idle: Sequence[Edge]  #: into the other readers, so that they make no difference

    def kl_without(self, edges: Sequence[Edge], allowed: Callable[[float], bool]) -> Trial:
        """As in `Visit`, for some of `edges`."""

    def forecast(self, gone: Sequence[Edge] = ()) -> Forecast:
        """What removing any of `edges` is forecast to cost, if `gone` were removed as well."""

    def remove(self, edges: Sequence[Edge], order: tuple[int, ...] | None = None) -> None:
        """As in `Visit`, for some of `edges` and `idle`."""


class Engine(Protocol):
    def visits(self) -> Iterator[Visit]:
        """The readers from the output backwards. Decide one before asking for the next."""

    def wide_visits(self) -> Iterator[WideVisit]:
        """The sublayers from the output backwards, each with all its readers. Decide one before asking for the next."""


class Journal(Protocol):
    """Remembers decisions, so that an interrupted run resumes where it stopped."""

    def recall(self, edges: Sequence[Edge]) -> list[Decision] | None:
        """The decisions on these edges, in the order in which they were made; None unless all are known."""

    def record(self, decisions: Sequence[Decision]) -> None: ...


def mean_kl(
    calibration: Calibration,
    divergence: Callable[[Chosen], Tensor],
    allowed: Callable[[float], bool],
    order: Sequence[int] | None = None,
) -> Trial:
    """The mean of a divergence over all processes' images, batch by batch, until a partial sum is not allowed.

    divergence: some of this process's images -> (n,), none negative, so that a partial sum bounds the whole from below.
    order: in which this process's images are taken; None: as they stand.
    """
    mine = len(calibration.clean)
    most = -(-calibration.total // calibration.share.world)
    indices = torch.arange(mine) if order is None else torch.tensor(order)
    parts, total = [torch.zeros(0, dtype=torch.float64)], 0.0
    for start, stop in pairwise([0, *range(BATCH // 2, most, BATCH), most]):
        chosen = slice(start, min(stop, mine))
        if start < mine:
            images: Chosen = chosen if order is None else indices[chosen].to(calibration.clean.device)
            parts.append(divergence(images).double().cpu())
        total += float(calibration.share.sum(parts[-1].sum() if start < mine else torch.zeros((), dtype=torch.float64)))
        if stop < most and not allowed(total / calibration.total):
            return Trial(total / calibration.total, exact=False)
    hardest = indices[torch.argsort(torch.cat(parts), descending=True, stable=True)]
    return Trial(total / calibration.total, exact=True, order=tuple(hardest.tolist()))


def batches(count: int, size: int = BATCH) -> Iterator[slice]:
    for start in range(0, count, size):
        yield slice(start, min(start + size, count))

"""What discovery algorithms and the engines under them agree on.

An engine walks the edge graph's readers from the output backwards and answers, for the reader at hand, what
D_KL(G‖H) becomes without some more of its edges; an algorithm asks, decides, and tells the engine what is removed.
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
"""Images run at a time: small enough for a batch's activations to stay near the cores, and for a hopeless trial to be
broken off early."""


@dataclass(frozen=True)
class Trial:
    """kl: D_KL(G‖H) in nats an image; where not exact, at least this much, and more than was allowed. order: where it
    is exact, this process's images by what they add to it, most first."""

    kl: float
    exact: bool
    order: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Limits:
    """tau: an edge goes if removing it raises D_KL(G‖H) by less than this, in nats an image. max_kl: the most that
    D_KL(G‖H) may reach, whatever τ says."""

    tau: float
    max_kl: float = float("inf")

    def allow(self, kl_new: float, kl: float) -> bool:
        return kl_new - kl < self.tau and kl_new <= self.max_kl


Chosen = slice | Tensor
"""Some of this process's images: a slice of them, or their indices."""


class Visit(Protocol):
    """One reader and the writers that it reads, in the circuit as decided so far."""

    reader: Reader
    writers: Sequence[Writer]
    idle: bool
    """No kept way leads from the reader to the logits: its edges change nothing."""

    def kl_without(self, writers: Sequence[Writer], allowed: Callable[[float], bool]) -> Trial:
        """D_KL(G‖H) without these edges, on top of those removed. allowed: once it says no to a part of the sum over
        images, which only grows, the rest is not computed."""

    def remove(self, writers: Sequence[Writer], order: tuple[int, ...] | None = None) -> None:
        """Settles that these edges are gone. order: that of their trial, for the trials to come: the images that add
        most tell first that a removal is not allowed."""


class WideVisit(Protocol):
    """All readers of one sublayer at once, in the circuit as decided so far."""

    edges: Sequence[Edge]
    """Into readers from which a kept way leads to the logits."""
    idle: Sequence[Edge]
    """The others: they change nothing."""

    def kl_without(self, edges: Sequence[Edge], allowed: Callable[[float], bool]) -> Trial:
        """As in `Visit`; edges of `edges` alone."""

    def forecast(self, gone: Sequence[Edge] = ()) -> Forecast:
        """What removing any of `edges` would cost, predicted, were these gone as well."""

    def remove(self, edges: Sequence[Edge], order: tuple[int, ...] | None = None) -> None:
        """As in `Visit`; of `edges` and `idle`."""


class Engine(Protocol):
    def visits(self) -> Iterator[Visit]:
        """The readers from the output backwards; each must be settled before the next is asked for."""

    def wide_visits(self) -> Iterator[WideVisit]:
        """The sublayers from the output backwards, all readers of one together."""


class Journal(Protocol):
    """Remembers decisions, so that a run that was broken off goes on where it stopped."""

    def recall(self, edge: Edge) -> Decision | None: ...

    def record(self, decision: Decision) -> None: ...

    def recall_all(self, edges: Sequence[Edge]) -> list[Decision] | None:
        """The decisions on these edges in the order in which they were made, or None where one is not known."""

    def record_all(self, decisions: Sequence[Decision]) -> None: ...


def mean_kl(
    calibration: Calibration,
    divergence: Callable[[Chosen], Tensor],
    allowed: Callable[[float], bool],
    order: Sequence[int] | None = None,
) -> Trial:
    """The mean over all processes' images of a divergence, batch by batch, broken off as soon as it is not allowed.

    divergence: images of this process -> (n,), none negative, so that a part of the sum bounds the whole from below.
    order: in which this process's images are taken; as they stand where None.
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

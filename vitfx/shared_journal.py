"""One journal for all processes of a discovery."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from vitfx.circuits.circuit import Decision, Edge
from vitfx.discovery.basis.calibration import Share
from vitfx.discovery.basis.protocol import Journal

Order = tuple[int, ...] | None


class SharedJournal:
    """The first process's journal: all recall what it knows, it alone records.

    A decision's order is of a process's own images. The journal has the orders of all, so that a run that was broken
    off goes on to the same bits; where the number of processes is another by now, they mean nothing and are left out.
    """

    def __init__(self, journal: Journal, share: Share) -> None:
        """journal: the first process's own, or a copy of it with the same decisions."""
        self._journal, self._share = journal, share

    def recall(self, edge: Edge) -> Decision | None:
        found = self._journal.recall(edge)
        return None if found is None else replace(found, order=self._own(found.order))

    def recall_all(self, edges: Sequence[Edge]) -> list[Decision] | None:
        found = self._journal.recall_all(edges)
        return None if found is None else [replace(one, order=self._own(one.order)) for one in found]

    def record(self, decision: Decision) -> None:
        """To be called by all processes, with the same decision."""
        together = replace(decision, order=self._of_all(decision.order))
        if self._share.rank == 0:
            self._journal.record(together)

    def record_all(self, decisions: Sequence[Decision]) -> None:
        """As `record`."""
        together = [replace(one, order=self._of_all(one.order)) for one in decisions]
        if self._share.rank == 0:
            self._journal.record_all(together)

    def _of_all(self, order: Order) -> Order:
        """Less the number of processes, then of each how many images it has and their order; of one alone, its own."""
        world = self._share.world
        if order is None or world == 1:
            return order
        sizes = torch.zeros(world, dtype=torch.int64)
        sizes[self._share.rank] = len(order)
        sizes = self._share.sum(sizes)
        rows = torch.zeros(world, int(sizes.max()), dtype=torch.int64)
        rows[self._share.rank, : len(order)] = torch.tensor(order)
        rows = self._share.sum(rows)
        found = [-world]
        for size, row in zip(sizes.tolist(), rows.tolist(), strict=True):
            found += [size, *row[:size]]
        return tuple(found)

    def _own(self, order: Order) -> Order:
        if order is None:
            return None
        world = -order[0] if order and order[0] < 0 else 1
        if world != self._share.world:
            return None
        if world == 1:
            return order
        rest = order[1:]
        for _ in range(self._share.rank):
            rest = rest[1 + rest[0] :]
        return rest[1 : 1 + rest[0]]

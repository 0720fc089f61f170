"""How much of a circuit other calibration images and other seeds would have found again.

Heads are compared by their place. MLP paths can't be, because every run groups the neurons anew. A path's edge counts
as an edge of each of its neurons, and neurons are compared. All neurons of an MLP together weigh as much as all its
paths, so that the number of edges stays what it was.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from vitfx.circuits.circuit import EMBED, Circuit, Edge, Writer
from vitfx.circuits.details import KeptBy, Overlap, Stability
from vitfx.circuits.liveness import dead_writers
from vitfx.discovery.run import Discovery
from vitfx.support.errors import UserError


@dataclass(frozen=True)
class Outcome:
    """A circuit, its graph's writers, and which of them are dead."""

    circuit: Circuit
    writers: tuple[Writer, ...]
    dead: frozenset[Writer]  #: all of them, where nothing of the image reaches the logits

    @staticmethod
    def of(discovery: Discovery) -> Outcome:
        writers = discovery.graph.writers
        try:
            dead = dead_writers(discovery.circuit, discovery.graph, discovery.constants)
        except UserError:
            dead = writers
        return Outcome(discovery.circuit, writers, frozenset(dead))

    def dead_of(self, kind: str) -> tuple[int, int]:
        """How many heads ("a") or MLP paths ("m") are dead, and how many there are; on the block graph, sublayers."""
        own = [writer for writer in self.writers if writer.sublayer != EMBED and writer.sublayer.startswith(kind)]
        return sum(writer in self.dead for writer in own), len(own)


def stability(outcomes: Sequence[Outcome]) -> Stability:
    """outcomes: of two runs or more, on graphs that differ in the groups of neurons alone."""
    table = _Table(outcomes[0])
    kept = torch.stack([table.kept(outcome) for outcome in outcomes])
    alive = torch.stack([table.alive(outcome) for outcome in outcomes])
    share, survival = kept.double().mean(dim=0), alive.double().mean(dim=0)
    heads, neurons = table.rows_of("a"), table.rows_of("m")
    result = Stability(
        repeats=len(outcomes),
        overlap=Overlap(
            edges=_overlap(kept, table.weight[:, None].expand_as(kept[0])),
            heads=_overlap(alive[:, heads], table.weight[heads]),
            neurons=_overlap(alive[:, neurons], table.weight[neurons]),
        ),
        kept_by=KeptBy(
            edges=_counts(kept, table.weight[:, None] * table.exists),
            heads=_counts(alive[:, heads]),
            neurons=_counts(alive[:, neurons]),
        ),
        seeds=[outcome.circuit.settings["seed"] for outcome in outcomes],
        kl=[outcome.circuit.kl for outcome in outcomes],
        survival={writer.name: _mean(survival[table.rows(writer)]) for writer in outcomes[0].writers},
    )
    edges = [decision.edge for decision in outcomes[0].circuit.decisions]
    if len(table.readers) == 1:
        result["edges"] = {edge.name: _mean(table.of(share, edge)) for edge in sorted(edges, key=table.place)}
    else:
        result["by_writer"] = {
            writer.name: _mean(share[table.rows(writer)][:, table.exists[table.rows(writer)[0]]])
            for writer in outcomes[0].writers
        }
    return result


def removal_shares(whole: Outcome, others: Sequence[Outcome]) -> dict[str, float]:
    """The share of other runs that removed each edge, by its name; of a path's edge, the mean over its neurons."""
    table = _Table(whole)
    removed = 1 - torch.stack([table.kept(outcome) for outcome in others]).double().mean(dim=0)
    edges = [decision.edge for decision in whole.circuit.decisions]
    return {edge.name: _mean(table.of(removed, edge)) for edge in edges}


def death_shares(whole: Outcome, others: Sequence[Outcome]) -> dict[str, float]:
    """The share of other runs in which each head or path is dead, by its name; of a path, its neurons' mean."""
    table = _Table(whole)
    dead = 1 - torch.stack([table.alive(outcome) for outcome in others]).double().mean(dim=0)
    return {writer.name: _mean(dead[table.rows(writer)]) for writer in whole.writers if writer.sublayer != EMBED}


class _Table:
    """Rows are the embedding, heads and neurons, columns are the readers."""

    def __init__(self, first: Outcome) -> None:
        self._start: dict[str, int] = {}
        weights: list[Tensor] = []
        by_sublayer: dict[str, list[Writer]] = {}
        for writer in first.writers:
            by_sublayer.setdefault(writer.sublayer, []).append(writer)
        size = 0
        for sublayer, writers in by_sublayer.items():
            units = max(1, sum(len(writer.units) for writer in writers))
            self._start[sublayer] = size
            weights.append(torch.full((units,), len(writers) / units, dtype=torch.float64))
            size += units
        self.weight = torch.cat(weights)  #: (rows,): a sublayer's writers per row of it
        self.sublayers = [name for name, part in zip(by_sublayer, weights, strict=True) for _ in part]
        self.readers = dict.fromkeys(decision.edge.reader for decision in first.circuit.decisions)
        self._column = {reader: column for column, reader in enumerate(self.readers)}
        #: bool (rows, readers): the edge exists
        self.exists = self._marked([decision.edge for decision in first.circuit.decisions])

    def rows(self, writer: Writer) -> list[int]:
        start = self._start[writer.sublayer]
        return [start + unit for unit in writer.units] or [start]

    def rows_of(self, kind: str) -> list[int]:
        return [row for row, name in enumerate(self.sublayers) if name != EMBED and name.startswith(kind)]

    def place(self, edge: Edge) -> tuple[int, int]:
        """A key that sorts edges by their writers, in the order of the stream."""
        return self._start[edge.writer.sublayer], edge.writer.index or 0

    def kept(self, outcome: Outcome) -> Tensor:
        return self._marked(outcome.circuit.kept)

    def alive(self, outcome: Outcome) -> Tensor:
        """bool (rows,)."""
        alive = torch.zeros(len(self.weight), dtype=torch.bool)
        alive[[row for writer in outcome.writers if writer not in outcome.dead for row in self.rows(writer)]] = True
        return alive

    def of(self, values: Tensor, edge: Edge) -> Tensor:
        return values[self.rows(edge.writer), self._column[edge.reader]]

    def _marked(self, edges: Sequence[Edge]) -> Tensor:
        marked = torch.zeros(len(self.weight), len(self._column), dtype=torch.bool)
        for edge in edges:
            marked[self.rows(edge.writer), self._column[edge.reader]] = True
        return marked


def _overlap(marked: Tensor, weight: Tensor) -> float:
    """The mean over pairs of runs of |both| / |either|, 1 where neither has any. marked: bool (runs, …)."""
    shares = []
    for left, right in combinations(marked, 2):
        either = float((weight * (left | right)).sum())
        shares.append(float((weight * (left & right)).sum()) / either if either else 1.0)
    return round(sum(shares) / len(shares), 6)


def _counts(marked: Tensor, weight: Tensor | None = None) -> list[float]:
    """How many were marked in 0, 1, … R of the R runs. marked: bool (runs, …). weight: how much each counts."""
    times = marked.sum(dim=0)
    weight = torch.ones(times.shape, dtype=torch.float64) if weight is None else weight
    return [round(float((weight * (times == count)).sum()), 3) for count in range(len(marked) + 1)]


def _mean(values: Tensor) -> float:
    return round(float(values.mean()), 6)

"""How much of a circuit other calibration images and other seeds would have found again.

Heads are compared by their place. MLP paths are not, because every run groups its neurons anew: a path's edge counts as
the same edge of each of its neurons, and neurons are compared. All neurons of an MLP together weigh as much as its
paths do, so that a graph of a path or a graph of a neuron has the same number of edges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from vitfx.circuits.circuit import EMBED, Circuit, Edge, Writer
from vitfx.circuits.liveness import dead_writers
from vitfx.discovery.run import Discovery
from vitfx.support.errors import UserError


@dataclass(frozen=True)
class Outcome:
    """A circuit and which of its graph's writers are dead: all, where nothing of the image reaches the logits."""

    circuit: Circuit
    writers: tuple[Writer, ...]
    dead: frozenset[Writer]

    @staticmethod
    def of(found: Discovery) -> Outcome:
        writers = found.graph.writers
        try:
            dead = dead_writers(found.circuit, found.graph, found.constants)
        except UserError:
            dead = writers
        return Outcome(found.circuit, writers, frozenset(dead))

    def dead_of(self, kind: str) -> tuple[int, int]:
        """Dead heads ("a") or MLP paths ("m"), and all of them; on the block graph, sublayers."""
        own = [one for one in self.writers if one.sublayer != EMBED and one.sublayer.startswith(kind)]
        return sum(one in self.dead for one in own), len(own)


def stability(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """outcomes: of two runs or more on the same graph but for the groups of neurons. JSON-ready:

    overlap: the mean over pairs of runs of |both| / |either|, of kept edges, surviving heads and surviving neurons.
    kept_by: how many edges, heads and neurons survived in 0, 1, … R of the R runs. seeds, kl: of the runs. survival:
    for each writer of the first run, the share of runs in which it survived; of a path, the mean over its neurons.
    edges: on the block and the head graph, the same of kept edges; by_writer: on the others, the mean over a writer's
    edges.
    """
    table = _Table(outcomes[0])
    kept = torch.stack([table.kept(one) for one in outcomes])
    alive = torch.stack([table.alive(one) for one in outcomes])
    share, survival = kept.double().mean(dim=0), alive.double().mean(dim=0)
    heads, neurons = table.rows_of("a"), table.rows_of("m")
    found: dict[str, Any] = {
        "repeats": len(outcomes),
        "overlap": {
            "edges": _overlap(kept, table.weight[:, None].expand_as(kept[0])),
            "heads": _overlap(alive[:, heads], table.weight[heads]),
            "neurons": _overlap(alive[:, neurons], table.weight[neurons]),
        },
        "kept_by": {
            "edges": _counts(kept, table.weight[:, None] * table.there),
            "heads": _counts(alive[:, heads]),
            "neurons": _counts(alive[:, neurons]),
        },
        "seeds": [one.circuit.settings["seed"] for one in outcomes],
        "kl": [one.circuit.kl for one in outcomes],
        "survival": {one.name: _mean(survival[table.rows(one)]) for one in outcomes[0].writers},
    }
    edges = [one.edge for one in outcomes[0].circuit.decisions]
    if len(table.readers) == 1:
        found["edges"] = {edge.name: _mean(table.of(share, edge)) for edge in sorted(edges, key=table.place)}
    else:
        found["by_writer"] = {
            one.name: _mean(share[table.rows(one)][:, table.there[table.rows(one)[0]]]) for one in outcomes[0].writers
        }
    return found


class _Table:
    """Rows are the embedding, heads and neurons, columns the readers. weight: edges of a row's unit for each of its
    writer's, (rows,). there: bool (rows, readers), where there is an edge."""

    def __init__(self, first: Outcome) -> None:
        self._start: dict[str, int] = {}
        weights: list[Tensor] = []
        by_sublayer: dict[str, list[Writer]] = {}
        for writer in first.writers:
            by_sublayer.setdefault(writer.sublayer, []).append(writer)
        size = 0
        for sublayer, writers in by_sublayer.items():
            units = max(1, sum(len(one.units) for one in writers))
            self._start[sublayer] = size
            weights.append(torch.full((units,), len(writers) / units, dtype=torch.float64))
            size += units
        self.weight = torch.cat(weights)
        self.sublayers = [name for name, part in zip(by_sublayer, weights, strict=True) for _ in part]
        self.readers = dict.fromkeys(decision.edge.reader for decision in first.circuit.decisions)
        self._column = {one: column for column, one in enumerate(self.readers)}
        self.there = self._marked([one.edge for one in first.circuit.decisions])

    def rows(self, writer: Writer) -> list[int]:
        start = self._start[writer.sublayer]
        return [start + unit for unit in writer.units] or [start]

    def rows_of(self, kind: str) -> list[int]:
        return [row for row, name in enumerate(self.sublayers) if name != EMBED and name.startswith(kind)]

    def place(self, edge: Edge) -> tuple[int, int]:
        return self._start[edge.writer.sublayer], edge.writer.index or 0

    def kept(self, outcome: Outcome) -> Tensor:
        return self._marked(outcome.circuit.kept)

    def alive(self, outcome: Outcome) -> Tensor:
        """bool (rows,)."""
        rows = [row for one in outcome.writers if one not in outcome.dead for row in self.rows(one)]
        found = torch.zeros(len(self.weight), dtype=torch.bool)
        found[rows] = True
        return found

    def of(self, values: Tensor, edge: Edge) -> Tensor:
        return values[self.rows(edge.writer), self._column[edge.reader]]

    def _marked(self, edges: Sequence[Edge]) -> Tensor:
        found = torch.zeros(len(self.weight), len(self._column), dtype=torch.bool)
        for edge in edges:
            found[self.rows(edge.writer), self._column[edge.reader]] = True
        return found


def _overlap(marked: Tensor, weight: Tensor) -> float:
    """Mean over pairs of runs of |both| / |either|, 1 where neither has any. marked: bool (runs, …)."""
    found = []
    for one, other in combinations(marked, 2):
        either = float((weight * (one | other)).sum())
        found.append(float((weight * (one & other)).sum()) / either if either else 1.0)
    return round(sum(found) / len(found), 6)


def _counts(marked: Tensor, weight: Tensor | None = None) -> list[float]:
    """How many were marked in 0, 1, … R of the R runs. marked: bool (runs, …); weight: how much each counts for."""
    times = marked.sum(dim=0)
    weight = torch.ones(times.shape, dtype=torch.float64) if weight is None else weight
    return [round(float((weight * (times == count)).sum()), 3) for count in range(len(marked) + 1)]


def _mean(values: Tensor) -> float:
    return round(float(values.mean()), 6)

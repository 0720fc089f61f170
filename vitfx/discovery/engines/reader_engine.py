"""The engine of the edge and the qkv graph, where a writer's edge into one reader is removed.

Everything before the reader is the whole model's, and kept. A trial adds the writer's reference less its value to what
the reader reads, recomputes that reader's own projection and head, and follows the change through the edges behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from vitfx.circuits.circuit import Reader, Writer
from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.circuits.edge_table import Wiring
from vitfx.discovery.basis.calibration import Calibration
from vitfx.discovery.basis.protocol import Chosen, Trial, batches, mean_kl
from vitfx.discovery.engines.clean_run import CleanRun
from vitfx.discovery.engines.downstream import Downstream
from vitfx.discovery.engines.partial_sublayers import Units
from vitfx.discovery.engines.wide_reader_visit import WideReaderVisit
from vitfx.graph.stages import Reference


class ReaderEngine:
    """Visits the logits, then MLPs and heads from the output backwards; a head's queries, keys and values in turn.

    Memory, in numbers: the whole model's streams, every writer's change to them, and during a visit what the readers
    behind it read, each N·T·D at most.
    """

    def __init__(
        self, graph: EdgeGraph, calibration: Calibration, reference: Reference, folder: Path | None = None
    ) -> None:
        """folder: see `CleanRun`."""
        self.graph, self.calibration = graph, calibration
        self.run = CleanRun(graph, calibration, reference, folder)
        self.wiring = Wiring(graph)
        self.order: tuple[int, ...] | None = None

    def visits(self) -> Iterator[ReaderVisit]:
        for index, inner in self._sublayers():
            for readers in self._groups(index):
                yield from self._visit(index, readers, inner)

    def wide_visits(self) -> Iterator[WideReaderVisit]:
        for index, inner in self._sublayers():
            visit = WideReaderVisit(self.run, self.wiring, index, inner, self.order)
            yield visit
            visit.settle()
            self.order = visit.order

    def _sublayers(self) -> Iterator[tuple[int, Tensor | None]]:
        """From the logits backwards: each sublayer's stage, and its inner channels in the whole model, (N, T, E)."""
        for index in range(self.run.logits_stage, self.graph.first - 1, -1):
            if index == self.run.logits_stage:
                yield index, None
            elif self.run.narrowed.stages[index].sublayer is not None:
                self.wiring.settle(index)
                yield index, self.run.inner(index)

    def _groups(self, index: int) -> list[list[int]]:
        """The rows of the readers of each head; of an MLP, its one reader."""
        groups: dict[int | None, list[int]] = {}
        for row in self.wiring.readers_of(index):
            groups.setdefault(self.wiring.readers[row].head, []).append(row)
        return list(groups.values())

    def _visit(self, index: int, readers: list[int], inner: Tensor | None) -> Iterator[ReaderVisit]:
        """inner: the sublayer's inner channels as decided so far, (N, T, E), in which the visit updates its own; None
        for the logits."""
        unit = _Unit(self, index, readers, inner)
        for row in readers:
            visit = ReaderVisit(unit, row)
            yield visit
            unit.settle(visit)
        if inner is not None:
            unit.write(inner)


class _Unit:
    """One head or MLP, or the logits, whose readers are visited one after another."""

    def __init__(self, engine: ReaderEngine, index: int, readers: list[int], inner: Tensor | None) -> None:
        self.engine, self.index, self.run, wiring = engine, index, engine.run, engine.wiring
        self.units: Units | None = None
        self.parts: list[Tensor] = []
        self.is_logits = inner is None
        if inner is None:
            return
        stage, first = self.run.narrowed.stages[index], wiring.readers[readers[0]]
        rows = wiring.alive_writers(index)
        rows = rows if first.head is None else [row for row in rows if row == wiring.head_row(first)]
        if not rows:
            return
        self.units, self.inner = Units(stage, wiring, rows), inner
        self.before = inner[..., self.units.channels]
        self.parts = self._all(lambda images: self._parts(readers, self._clean(images, len(readers)), []))

    @cached_property
    def down(self) -> Downstream:
        """Computed at the first trial: a reader whose decisions a journal holds needs none."""
        assert self.units is not None
        return Downstream(self.run, self.engine.wiring, self.index, self.units.rows, self.inner)

    @property
    def idle(self) -> bool:
        """Whether nothing of it reaches the logits."""
        return self.units is None and not self.is_logits

    def _clean(self, images: Chosen, readers: int) -> Tensor:
        stream = self.run.read(self.index)[images]
        return stream.expand(readers, *stream.shape)

    def _parts(self, readers: list[int], read: Tensor, known: Sequence[Tensor]) -> list[Tensor]:
        assert self.units is not None
        return self.units.parts([self.engine.wiring.readers[row] for row in readers], read, known)

    def _all(self, of_images: Callable[[slice], list[Tensor]]) -> list[Tensor]:
        with torch.no_grad():
            pieces = [of_images(images) for images in batches(len(self.run.logits))]
        return [torch.cat(part) for part in zip(*pieces, strict=True)]

    def logits(self, reader: int, read: Tensor, images: Chosen) -> Tensor:
        """The logits (n, K) if one of the readers reads (n, T, D)."""
        if self.units is None:
            return self.run.classify(read)
        parts = self._parts([reader], read[None], [part[images] for part in self.parts])
        change = self.units.inner(read[None], parts) - self.before[images]
        return self.down.logits(images, self.units.by_row(change))

    def settle(self, visit: ReaderVisit) -> None:
        """Once the reader's edges are decided: updates the parts from which the unit's next reader starts."""
        visit.tidy()
        if self.idle or self.is_logits:
            return
        self.read = visit.read
        self.parts = self._all(
            lambda images: self._parts([visit.row], visit.read[None, images], [part[images] for part in self.parts])
        )

    def write(self, inner: Tensor) -> None:
        """Updates the unit's own channels in the sublayer's inner channels (N, T, E)."""
        units = self.units
        if units is not None:
            parts = self.parts
            made = self._all(lambda images: [units.inner(self.read[None, images], [part[images] for part in parts])])
            inner[..., units.channels] = made[0]


class ReaderVisit:
    """One reader, what it reads now, (N, T, D), and the writers before it."""

    def __init__(self, unit: _Unit, row: int) -> None:
        self.unit, self.row, engine = unit, row, unit.engine
        self.engine, self.run = engine, engine.run
        self.reader: Reader = engine.wiring.readers[row]
        self.writers: Sequence[Writer] = engine.graph.parents(self.reader)
        self.idle = unit.idle
        start = self.run.narrowed.start
        self.cut = unit.index > start or (unit.index == start and self.reader.part == "q")
        self.read = self._whole()

    def _whole(self) -> Tensor:
        """What the reader reads in the whole model; queries of the last attention, for the tokens that the logits read
        alone."""
        stream = self.run.read(self.unit.index)
        return self.run.narrowed.cut(stream) if self.unit.index == self.run.narrowed.start and self.cut else stream

    @torch.no_grad()
    def kl_without(self, writers: Sequence[Writer], allowed: Callable[[float], bool]) -> Trial:
        groups = self._by_stage(writers)

        def divergence(images: Chosen) -> Tensor:
            read = self.read[images] + self._change(groups, images)
            logits = self.unit.logits(self.row, read, images)
            return self.engine.calibration.divergence(self.run.logits[images], logits)

        return mean_kl(self.engine.calibration, divergence, allowed, self.engine.order)

    @torch.no_grad()
    def remove(self, writers: Sequence[Writer], order: tuple[int, ...] | None = None) -> None:
        self.engine.order = self.engine.order if order is None else order
        self.engine.wiring.remove(self.row, writers)
        if writers and not self.idle:
            groups = self._by_stage(writers)
            changes = [self._change(groups, images) for images in batches(len(self.read))]
            self.read = self.read + torch.cat(changes)

    def tidy(self) -> None:
        """Computes what is read from the whole model once more, so that rounding does not depend on the steps in which
        edges were removed: an interrupted run resumes to the same bits."""
        seen = self.engine.wiring.seen[self.row]
        gone = [writer for writer in self.writers if not seen[self.engine.wiring.row[writer]]]
        self.read = self._whole()
        self.remove(gone)

    def _change(self, groups: dict[int, list[Writer]], images: Chosen) -> Tensor:
        return torch.stack(
            [self.run.change(index, writers, images, cut=self.cut) for index, writers in groups.items()]
        ).sum(dim=0)

    def _by_stage(self, writers: Sequence[Writer]) -> dict[int, list[Writer]]:
        wiring, groups = self.engine.wiring, dict[int, list[Writer]]()
        for writer in writers:
            groups.setdefault(wiring.writer_stage[wiring.row[writer]], []).append(writer)
        return groups

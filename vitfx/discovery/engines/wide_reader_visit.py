"""All readers of one sublayer at once, on the edge and the qkv graph: the queries, keys and values of an attention's
heads, an MLP, or the logits.

Shapes: R readers that lead to the logits, n images of a batch, N images of the process, T tokens, D width, E inner
channels of the sublayer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from passes.norms import NORMS
from vitfx.circuits.circuit import Edge
from vitfx.circuits.edge_table import Wiring
from vitfx.discovery.basis.forecast import Forecast
from vitfx.discovery.basis.protocol import Chosen, Trial, batches, mean_kl
from vitfx.discovery.engines.behind_norm import Rescale, products, standardized
from vitfx.discovery.engines.clean_run import CleanRun
from vitfx.discovery.engines.downstream import Downstream
from vitfx.discovery.engines.partial_sublayers import Units
from vitfx.discovery.engines.second_order import ByAutograd, TrackedLogits, second_order


class WideReaderVisit:
    """Visits the readers of one sublayer. Places count those of them that lead to the logits."""

    def __init__(
        self, run: CleanRun, wiring: Wiring, index: int, inner: Tensor | None, order: tuple[int, ...] | None
    ) -> None:
        """
        index: of the stage.
        inner: the sublayer's inner channels in the whole model, (N, T, E), which `settle` updates; None for the logits.
        order: of the images, as the last trial left it.
        """
        self.run, self.wiring, self.index, self.inner, self.order = run, wiring, index, inner, order
        self.rows = wiring.alive_readers(index)
        self.place = {wiring.readers[row]: place for place, row in enumerate(self.rows)}
        readers = [wiring.readers[row] for row in wiring.readers_of(index)]
        self.writers = run.graph.parents(readers[0])
        self.edges: Sequence[Edge] = [Edge(writer, reader) for reader in self.place for writer in self.writers]
        idle = [reader for reader in readers if reader not in self.place]
        self.idle: Sequence[Edge] = [Edge(writer, reader) for reader in idle for writer in self.writers]
        self.cut = index > run.narrowed.start
        #: what each reader sees in the circuit as it stands, (R, N, T, D)
        self.read = run.read(index).repeat(len(self.rows), 1, 1, 1)
        rows = [] if inner is None else wiring.alive_writers(index)
        self.units = Units(run.narrowed.stages[index], wiring, rows) if rows else None
        self.parts: list[Tensor] = []
        if self.units is not None and inner is not None:
            self.before = inner[..., self.units.channels]
            self._renew(range(len(self.rows)))

    @cached_property
    def down(self) -> Downstream:
        """Computed at the first trial: a sublayer whose decisions a journal holds needs none."""
        assert self.units is not None and self.inner is not None
        return Downstream(self.run, self.wiring, self.index, self.units.rows, self.inner)

    @torch.no_grad()
    def kl_without(self, edges: Sequence[Edge], allowed: Callable[[float], bool]) -> Trial:
        places, sets = self._sets(edges)
        # For few edges this is cheap: it is done batch by batch, in the trial's order of images.
        few = self._are_few(edges)
        reads = None if few else torch.cat([self._changed(places, sets, images) for images in self._batches()], dim=1)

        def divergence(images: Chosen) -> Tensor:
            read = self._changed_few(places, edges, images) if reads is None else reads[:, images]
            units = self.units
            if units is None:
                return self.run.calibration.divergence(self.run.logits[images], self.run.classify(read[0]))
            logits = self.down.logits(images, self._made(units, places, read, images))
            return self.run.calibration.divergence(self.run.logits[images], logits)

        return mean_kl(self.run.calibration, divergence, allowed, self.order)

    def forecast(self, gone: Sequence[Edge] = ()) -> Forecast:
        """What removing each edge would cost, if `gone` were removed as well, and of those what it has cost.

        Changes are taken behind the norm, see `vitfx.discovery.engines.behind_norm`; for the logits, in the stream.
        """
        places, sets = self._sets(gone)

        def seen(images: slice) -> Tensor:
            read = self.read[:, images]
            if places:
                read = read.clone()
                read[places] = self._changed(places, sets, images)
            return read

        if self.units is None:
            return self._forecast_logits(seen)
        norm = self.units.stage.norm
        assert isinstance(norm, NORMS)
        units = Units(replace(self.units.stage, norm=Rescale(norm)), self.wiring, self.units.rows)
        everywhere = list(range(len(self.rows)))
        signs = torch.ones(len(self.rows), len(self.writers))
        signs[places] -= 2 * sets

        def track(read: Tensor, images: slice) -> TrackedLogits:
            behind = standardized(norm, read)
            return self.down.tracked(images, behind, lambda behind: self._made(units, everywhere, behind, images))

        def along(gradients: Tensor, read: Tensor, images: slice) -> Tensor:
            changes = self.run.changes(len(self.writers), images, cut=self.cut)
            return products(norm, gradients, read, changes, signs)

        return second_order(self.run.calibration, self.run.logits, seen, track, along)

    def _forecast_logits(self, seen: Callable[[slice], Tensor]) -> Forecast:
        def track(read: Tensor, images: slice) -> TrackedLogits:
            return ByAutograd(read, lambda read: self.run.classify(read[0]))

        def along(gradients: Tensor, read: Tensor, images: slice) -> Tensor:
            return self.run.along(gradients.flatten(0, 1), self.writers, images, cut=self.cut)

        return second_order(self.run.calibration, self.run.logits, seen, track, along)

    @torch.no_grad()
    def remove(self, edges: Sequence[Edge], order: tuple[int, ...] | None = None) -> None:
        self.order = self.order if order is None else order
        for edge in edges:
            self.wiring.remove(self.wiring.reader_row[edge.reader], [edge.writer])
        own = [edge for edge in edges if edge.reader in self.place]  # idle ones change nothing that is read
        places, sets = self._sets(own)
        if places:
            few = self._are_few(own)
            for images in self._batches():
                self.read[places, images] = (
                    self._changed_few(places, own, images) if few else self._changed(places, sets, images)
                )
            if self.units is not None:
                self._renew(places)

    @torch.no_grad()
    def settle(self) -> None:
        """To be called once all edges are decided. Computes what is read from the whole model once more, so that
        rounding does not depend on the steps in which edges were removed: an interrupted run resumes to the same
        bits."""
        gone = [edge for edge in self.edges if not self.wiring.sees(edge)]
        self.read = self.run.read(self.index).repeat(len(self.rows), 1, 1, 1)
        self.remove(gone)
        if self.units is not None and self.inner is not None:
            units = self.units
            for images in self._batches():
                made = units.inner(self.read[:, images], [part[images] for part in self.parts])
                self.inner[images, :, units.channels] = made

    @torch.no_grad()
    def _renew(self, places: Sequence[int]) -> None:
        """Updates the queries, keys or values of these readers, from what they read."""
        assert self.units is not None
        readers = [self.wiring.readers[self.rows[place]] for place in places]
        pieces = [
            self.units.parts(readers, self.read[list(places), images], [part[images] for part in self.parts])
            for images in self._batches()
        ]
        self.parts = [torch.cat(part) for part in zip(*pieces, strict=True)]

    def _made(self, units: Units, places: Sequence[int], read: Tensor, images: Chosen) -> Tensor:
        """By how much each row's output differs from the whole model's, (rows, n, T, D), if these readers see (readers,
        n, T, D) and the others what they see now."""
        readers = [self.wiring.readers[self.rows[place]] for place in places]
        parts = units.parts(readers, read, [part[images] for part in self.parts])
        return units.by_row(units.inner(read, parts) - self.before[images])

    def _batches(self) -> Iterator[slice]:
        return batches(self.read.shape[1])

    def _sets(self, edges: Sequence[Edge]) -> tuple[list[int], Tensor]:
        """The places of the edges' readers, and for each of these its edges' writers as ones, (readers, writers)."""
        places = list(dict.fromkeys(self.place[edge.reader] for edge in edges))
        row = {place: row for row, place in enumerate(places)}
        sets = torch.zeros(len(places), len(self.writers))
        for edge in edges:
            sets[row[self.place[edge.reader]], self.wiring.row[edge.writer]] = 1
        return places, sets

    def _are_few(self, edges: Sequence[Edge]) -> bool:
        """Whether adding up their writers' changes one by one is cheaper than reading every writer's change once."""
        return 2 * len(edges) <= len(self.writers)

    def _changed(self, places: list[int], sets: Tensor, images: slice) -> Tensor:
        """What these readers see without their sets of writers: (readers, n, T, D)."""
        return self.read[places, images] + self.run.together(self.writers, sets, images, cut=self.cut)

    def _changed_few(self, places: list[int], edges: Sequence[Edge], images: Chosen) -> Tensor:
        """The same, edge by edge."""
        reads = {place: self.read[place, images] for place in places}
        for edge in edges:
            index, place = self.wiring.writer_stage[self.wiring.row[edge.writer]], self.place[edge.reader]
            reads[place] = reads[place] + self.run.change(index, [edge.writer], images, cut=self.cut)
        return torch.stack(list(reads.values()))

"""The whole model's run over the calibration images, kept: what every writer before the reader at hand puts out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from passes.plan import channels_of
from vitfx.calibration import Calibration
from vitfx.circuit import EMBED, Writer
from vitfx.edge_graph import EdgeGraph
from vitfx.narrow import Narrowed, narrow
from vitfx.search import BATCH, Chosen
from vitfx.stages import Reference, of_images


class CleanRun:
    """streams: the input of each stage, (N, T, D); T behind the last attention is what the logits read. logits: (N, K).

    Memory, in numbers: N·T·((2L + 1)·D + ΣE): the streams, and of every sublayer reference less inner channels.
    """

    def __init__(self, graph: EdgeGraph, calibration: Calibration, reference: Reference) -> None:
        self.graph, self.calibration = graph, calibration
        self.narrowed: Narrowed = narrow(graph.stages, calibration.clean)
        self.logits_stage = graph.last + 1
        self._whole_reference, self._reference = reference, self.narrowed.reference(reference)
        with torch.no_grad():
            self._lay_out()
            self._run()

    def _lay_out(self) -> None:
        """Each writer's channels side by side: a writer is a slice then, of activations and of weights."""
        self._span: dict[Writer, slice] = {}
        self._order: dict[int, Tensor] = {}
        self._columns: dict[int, Tensor] = {}
        for index, stage in enumerate(self.graph.stages):
            module = stage.sublayer
            if module is None:
                continue
            start, units = 0, list[int]()
            for writer in (one for one in self.graph.writers if one.sublayer == stage.name):
                stop = start + len(writer.units) * module.channels
                self._span[writer], start = slice(start, stop), stop
                units += writer.units
            weight = module.out.weight
            self._order[index] = channels_of(units, module.channels).to(weight.device)
            self._columns[index] = weight.T[self._order[index]].contiguous()

    def _run(self) -> None:
        streams: dict[int, list[Tensor]] = {}
        missing: dict[int, list[Tensor]] = {}
        logits = []
        for start in range(0, len(self.calibration.clean), BATCH):
            images = slice(start, min(start + BATCH, len(self.calibration.clean)))
            stream = self.calibration.clean[images]
            for index, stage in enumerate(self.narrowed.stages):
                if index == self.graph.first:
                    embed = of_images(self._whole_reference[EMBED], images).to(stream) - stream
                    missing.setdefault(index - 1, []).append(embed)
                if index >= self.graph.first:
                    streams.setdefault(index, []).append(stream)
                if stage.sublayer is None:
                    stream = stage(stream)
                    continue
                inner = stage.inner(stream)
                change = self.reference_of(index, images).to(inner) - inner
                missing.setdefault(index, []).append(change[..., self._order[index]])
                stream = stage.carried(stream) + stage.sublayer.out(inner)
            logits.append(stream)
        self.streams = {index: torch.cat(parts) for index, parts in streams.items()}
        self._missing = {index: torch.cat(parts) for index, parts in missing.items()}
        self.logits = torch.cat(logits)

    @torch.no_grad()
    def inner(self, index: int) -> Tensor:
        """A sublayer's inner channels (N, T, E), worked out again."""
        stage = self.narrowed.stages[index]
        return torch.cat([stage.inner(stream) for stream in self.streams[index].split(BATCH)])

    def classify(self, stream: Tensor) -> Tensor:
        """What the logits read (n, T, D) -> (n, K)."""
        for stage in self.narrowed.stages[self.logits_stage :]:
            stream = stage(stream)
        return stream

    def reference_of(self, index: int, images: Chosen) -> Tensor:
        return of_images(self._reference[self.narrowed.stages[index].name], images)

    def change(self, index: int, writers: Sequence[Writer], images: Chosen, *, cut: bool) -> Tensor:
        """What replacing these writers, all of the stage `index`, adds to the stream: (n, T, D).

        cut: for the tokens that the logits read alone.
        """
        missing = self._missing_of(index, images, cut=cut)
        if index < self.graph.first:
            return missing
        columns, spans = self._columns[index], [self._span[one] for one in writers]
        if 2 * sum(span.stop - span.start for span in spans) < len(columns):
            return torch.stack([missing[..., span] @ columns[span] for span in spans]).sum(dim=0)
        chosen = columns.new_zeros(len(columns), 1)
        for span in spans:
            chosen[span] = 1
        return missing @ (columns * chosen)

    def along(self, gradient: Tensor, writers: Iterable[Writer], images: Chosen, *, cut: bool) -> Tensor:
        """A gradient by the stream (n, T, D) -> its product with what replacing each writer changes, (writers, n)."""
        found, products = [], dict[int, Tensor]()
        for writer in writers:
            embed = writer.sublayer == EMBED
            index = self.graph.first - 1 if embed else self.graph.stage_index(writer.sublayer)
            if index not in products:
                by_channel = gradient if embed else gradient @ self._columns[index].T
                products[index] = (self._missing_of(index, images, cut=cut) * by_channel).sum(dim=1)
            found.append(products[index][:, slice(None) if embed else self._span[writer]].sum(dim=1))
        return torch.stack(found)

    def _missing_of(self, index: int, images: Chosen, *, cut: bool) -> Tensor:
        missing = self._missing[index][images]
        return self.narrowed.cut(missing) if cut and index < self.narrowed.start else missing

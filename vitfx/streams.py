"""The whole model's run over the calibration images, kept: what every writer before the reader at hand puts out."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vitfx.calibration import Calibration
from vitfx.circuit import EMBED, Writer
from vitfx.edge_graph import EdgeGraph
from vitfx.narrow import Narrowed, narrow
from vitfx.search import BATCH
from vitfx.stages import Reference, contribution, of_images


class CleanRun:
    """streams: the input of each stage, (N, T, D). inner: each sublayer's inner channels (N, T, E) by its index.
    logits: (N, K). Behind the last attention, T is what the logits read.

    Memory, in numbers: N·T·(2L·D + ΣE).
    """

    def __init__(self, graph: EdgeGraph, calibration: Calibration, reference: Reference) -> None:
        self.graph, self.calibration = graph, calibration
        self.narrowed: Narrowed = narrow(graph.stages, calibration.clean)
        self.logits_stage = graph.last + 1
        self._whole_reference, self._reference = reference, self.narrowed.reference(reference)
        with torch.no_grad():
            self.streams, self.inner, self.logits = self._run()

    def _run(self) -> tuple[dict[int, Tensor], dict[int, Tensor], Tensor]:
        streams: dict[int, list[Tensor]] = {}
        inners: dict[int, list[Tensor]] = {}
        logits = []
        for pixels in self.calibration.clean.split(BATCH):
            stream = pixels
            for index, stage in enumerate(self.narrowed.stages):
                if index >= self.graph.first:
                    streams.setdefault(index, []).append(stream)
                if stage.sublayer is None:
                    stream = stage(stream)
                    continue
                inner = stage.inner(stream)
                inners.setdefault(index, []).append(inner)
                stream = stage.carried(stream) + stage.sublayer.out(inner)
            logits.append(stream)
        return (
            {index: torch.cat(parts) for index, parts in streams.items()},
            {index: torch.cat(parts) for index, parts in inners.items()},
            torch.cat(logits),
        )

    def classify(self, stream: Tensor) -> Tensor:
        """What the logits read (n, T, D) -> (n, K)."""
        for stage in self.narrowed.stages[self.logits_stage :]:
            stream = stage(stream)
        return stream

    def reference_of(self, index: int, images: slice) -> Tensor:
        return of_images(self._reference[self.narrowed.stages[index].name], images)

    def change(self, index: int, writers: Sequence[Writer], images: slice, *, cut: bool) -> Tensor:
        """What replacing these writers, all of the stage `index`, adds to the stream: (n, T, D)."""
        inner = self.replacing(index, images, cut=cut)
        module = self.narrowed.stages[index].sublayer if index >= self.graph.first else None
        return inner if module is None else contribution(module, [unit for one in writers for unit in one.units], inner)

    def replacing(self, index: int, images: slice, *, cut: bool) -> Tensor:
        """Reference less value: of a stage's inner channels (n, T, E); before the first one, the embedding's (n, T, D).

        cut: for the tokens that the logits read alone.
        """
        embed = index < self.graph.first
        value = (self.streams[self.graph.first] if embed else self.inner[index])[images]
        reference = of_images(self._whole_reference[EMBED], images) if embed else self.reference_of(index, images)
        if cut and index < self.narrowed.start:
            value, reference = self.narrowed.cut(value), self.narrowed.cut(reference)
        return reference.to(value) - value

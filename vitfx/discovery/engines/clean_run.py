"""The whole model's run over the calibration images, kept: what every writer before the reader at hand puts out."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from vitfx.circuits.circuit import EMBED, Writer
from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.discovery.basis.calibration import Calibration
from vitfx.discovery.basis.protocol import BATCH, Chosen
from vitfx.graph.narrow import Narrowed, narrow
from vitfx.graph.stages import Reference, contribution, of_images
from vitfx.support.files import writing


class CleanRun:
    """streams: the input of each stage, (N, T, D); T behind the last attention is what the logits read. logits: (N, K).

    Memory, in numbers: N·T·D for each of the 2L + 1 streams and for each writer, whose reference less its value is kept
    as it enters the stream: every reader's trials add some of these up.
    """

    def __init__(
        self, graph: EdgeGraph, calibration: Calibration, reference: Reference, folder: Path | None = None
    ) -> None:
        """folder: where the writers' changes go to a file, instead of the memory of the device. Raises WriteError."""
        self._folder = folder
        self.graph, self.calibration = graph, calibration
        self.narrowed: Narrowed = narrow(graph.stages, calibration.clean)
        self.logits_stage = graph.last + 1
        self._whole_reference, self._reference = reference, self.narrowed.reference(reference)
        names = {stage.name: index for index, stage in enumerate(graph.stages)} | {EMBED: graph.first - 1}
        self._writers: dict[int, list[Writer]] = {}
        for writer in graph.writers:
            self._writers.setdefault(names[writer.sublayer], []).append(writer)
        self._place = {one: place for own in self._writers.values() for place, one in enumerate(own)}
        self._changes: dict[int, Tensor] = {}
        with torch.no_grad():
            self._run()

    def _run(self) -> None:
        streams: dict[int, list[Tensor]] = {}
        logits = []
        for start in range(0, len(self.calibration.clean), BATCH):
            images = slice(start, min(start + BATCH, len(self.calibration.clean)))
            stream = self.calibration.clean[images]
            for index, stage in enumerate(self.narrowed.stages):
                if index == self.graph.first:
                    embed = of_images(self._whole_reference[EMBED], images).to(stream) - stream
                    self._keep(index - 1, images, [embed])
                if index >= self.graph.first:
                    streams.setdefault(index, []).append(stream)
                module = stage.sublayer
                if module is None:
                    stream = stage(stream)
                    continue
                inner = stage.inner(stream)
                missing = self.reference_of(index, images).to(inner) - inner
                self._keep(index, images, [contribution(module, one.units, missing) for one in self._writers[index]])
                stream = stage.carried(stream) + module.out(inner)
            logits.append(stream)
        self.streams = {index: torch.cat(parts) for index, parts in streams.items()}
        self.logits = torch.cat(logits)

    def _keep(self, index: int, images: slice, changes: Sequence[Tensor]) -> None:
        """changes: of each writer of a stage, (n, T, D)."""
        if index not in self._changes:
            self._changes[index] = self._room(index, changes[0])
        for place, change in enumerate(changes):
            self._changes[index][place, images] = change

    def _room(self, index: int, like: Tensor) -> Tensor:
        """(writers of the stage, N, T, D); up to the last attention all in one piece, in the order of the writers."""
        own = len(self._writers[index])
        if index >= self.narrowed.start:
            return self._empty(own, like)
        earlier = sum(len(found) for found in self._changes.values())
        if not earlier:
            count = sum(len(found) for at, found in self._writers.items() if at < self.narrowed.start)
            self._whole = self._empty(count, like)
        return self._whole[earlier : earlier + own]

    def _empty(self, writers: int, like: Tensor) -> Tensor:
        shape = (writers, len(self.calibration.clean), *like.shape[1:])
        return like.new_empty(shape) if self._folder is None else mapped(self._folder, shape, like.dtype)

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
        first, *others = writers
        total = self._change(index, first, images, cut=cut)
        if others:
            total = total + self._change(index, others[0], images, cut=cut)
        for writer in others[1:]:
            total += self._change(index, writer, images, cut=cut)
        return total

    def _change(self, index: int, writer: Writer, images: Chosen, *, cut: bool) -> Tensor:
        changes = self._changes[index][self._place[writer]]
        chosen = self._there(changes[images if isinstance(images, slice) else images.to(changes.device)])
        return self.narrowed.cut(chosen) if cut and index < self.narrowed.start else chosen

    def together(self, writers: Sequence[Writer], sets: Tensor, images: slice, *, cut: bool) -> Tensor:
        """`change` for several sets of writers at once: (sets, n, T, D), every writer's change read once for all.

        writers: the first of the graph's. sets: (sets, writers), 1 where a writer belongs to a set.
        """
        changes = self.changes(len(writers), images, cut=cut)
        return (sets.to(changes) @ changes.flatten(1)).unflatten(1, changes.shape[1:])

    def along(self, gradients: Tensor, writers: Sequence[Writer], images: slice, *, cut: bool) -> Tensor:
        """Gradients by the stream (g, n, T, D) -> their products with what replacing each of the writers, the first of
        the graph's, changes: (g, writers, n)."""
        changes = self.changes(len(writers), images, cut=cut).flatten(2).transpose(0, 1)
        return (changes @ gradients.flatten(2).permute(1, 2, 0)).permute(2, 1, 0)

    def changes(self, count: int, images: slice, *, cut: bool) -> Tensor:
        """What replacing each of the graph's first writers changes: (count, n, T, D)."""
        whole = self._there(self._whole[:count, images])
        if not cut:
            return whole
        later = [changes for index, changes in self._changes.items() if index >= self.narrowed.start]
        return torch.cat([self.narrowed.cut(whole), *(self._there(one[:, images]) for one in later)])[:count]

    def _there(self, changes: Tensor) -> Tensor:
        """Where the model is: what lies in a file is in the host's memory."""
        return changes.to(self.logits.device)


def mapped(folder: Path, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Zeros of this shape, on the CPU, in a file of the folder that has no name: its room is free again once nothing
    refers to the tensor, even if the process is killed.

    Raises WriteError where the folder does not take that much.
    """
    count = math.prod(shape)
    size = max(1, count * dtype.itemsize)
    with writing(folder), tempfile.TemporaryFile(dir=folder) as file:
        file.truncate(size)
        if hasattr(os, "posix_fallocate"):
            # Without room for all of it the process would be killed at some write in the middle of its work.
            os.posix_fallocate(file.fileno(), 0, size)
        return torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=dtype, count=count).view(tuple(shape))

"""The whole model's run on the calibration images, kept: it is what every writer before the reader at hand adds."""

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
from vitfx.discovery.basis.protocol import BATCH, Chosen, batches
from vitfx.graph.narrow import narrow
from vitfx.graph.stages import Reference, contribution, in_batches, of_images, run_stages, streams_at
from vitfx.support.files import writing


class CleanRun:
    """Keeps every stage's stream, the logits, and for each writer its change, what replacing it adds to the stream:
    reference less value. Every reader's trials add up some of the changes. Behind the last attention only the tokens
    that the logits read are kept.

    Memory, in numbers: N·T·D for each of the 2L + 1 streams and each writer.
    """

    def __init__(
        self, graph: EdgeGraph, calibration: Calibration, reference: Reference, folder: Path | None = None
    ) -> None:
        """folder: where the changes go into a file; None keeps them in the device's memory. Raises WriteError."""
        self._folder = folder
        self.graph, self.calibration = graph, calibration
        self.narrowed = narrow(graph.stages, calibration.clean)
        self.logits_stage = graph.last + 1
        self._whole_reference, self._reference = reference, self.narrowed.reference(reference)
        names = {stage.name: index for index, stage in enumerate(graph.stages)} | {EMBED: graph.first - 1}
        self._writers: dict[int, list[Writer]] = {}
        for writer in graph.writers:
            self._writers.setdefault(names[writer.sublayer], []).append(writer)
        self._place = {writer: place for own in self._writers.values() for place, writer in enumerate(own)}
        self._changes: dict[int, Tensor] = {}
        with torch.no_grad():
            self._run()

    def _run(self) -> None:
        streams: dict[int, list[Tensor]] = {}
        logits = []
        for images in batches(len(self.calibration.clean)):
            for index, reading in enumerate(streams_at(self.narrowed.stages, self.calibration.clean[images])):
                stream, module = reading.stream, reading.stage.sublayer
                if index == self.graph.first:
                    embed = of_images(self._whole_reference[EMBED], images).to(stream) - stream
                    self._keep(index - 1, images, [embed])
                if index >= self.graph.first:
                    streams.setdefault(index, []).append(stream)
                if module is not None:
                    missing = self.reference_of(index, images).to(reading.inner) - reading.inner
                    writers = self._writers[index]
                    self._keep(index, images, [contribution(module, writer.units, missing) for writer in writers])
            logits.append(reading.behind)
        #: the stream before each stage from the first sublayer on, (N, T, D)
        self.streams = {index: torch.cat(parts) for index, parts in streams.items()}
        self.logits = torch.cat(logits)  #: (N, K)

    def _keep(self, index: int, images: slice, changes: Sequence[Tensor]) -> None:
        """changes: of each of a stage's writers, (n, T, D)."""
        if index not in self._changes:
            self._changes[index] = self._room(index, changes[0])
        for place, change in enumerate(changes):
            self._changes[index][place, images] = change

    def _room(self, index: int, like: Tensor) -> Tensor:
        """(writers of the stage, N, T, D). Before the last attention, part of one tensor for all writers, in order."""
        own = len(self._writers[index])
        if index >= self.narrowed.start:
            return self._empty(own, like)
        earlier = sum(len(changes) for changes in self._changes.values())
        if not earlier:
            count = sum(len(writers) for stage, writers in self._writers.items() if stage < self.narrowed.start)
            self._whole = self._empty(count, like)
        return self._whole[earlier : earlier + own]

    def _empty(self, writers: int, like: Tensor) -> Tensor:
        shape = (writers, len(self.calibration.clean), *like.shape[1:])
        return like.new_empty(shape) if self._folder is None else mapped(self._folder, shape, like.dtype)

    def read(self, index: int) -> Tensor:
        """What a stage's readers read, or the logits: (N, T, D)."""
        return self.narrowed.stages[index].read(self.streams[index])

    @torch.no_grad()
    def inner(self, index: int) -> Tensor:
        """A sublayer's inner channels (N, T, E), computed again."""
        return in_batches(self.narrowed.stages[index].inner, self.streams[index], BATCH)

    def classify(self, stream: Tensor) -> Tensor:
        """The stream that the logits read (n, T, D) -> (n, K)."""
        return run_stages(self.narrowed.stages[self.logits_stage :], stream)

    def reference_of(self, index: int, images: Chosen) -> Tensor:
        return of_images(self._reference[self.narrowed.stages[index].name], images)

    def change(self, index: int, writers: Sequence[Writer], images: Chosen, *, cut: bool) -> Tensor:
        """What replacing these writers, all of the stage `index`, adds to the stream: (n, T, D).

        cut: only for the tokens that the logits read.
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
        """`change` for several sets of writers: (sets, n, T, D). Each writer's change is read once for all sets.

        writers: the graph's first ones.
        sets: (sets, writers), 1 where a writer belongs to a set.
        """
        changes = self.changes(len(writers), images, cut=cut)
        return torch.unflatten(sets.to(changes) @ changes.flatten(1), 1, changes.shape[1:])

    def along(self, gradients: Tensor, writers: Sequence[Writer], images: slice, *, cut: bool) -> Tensor:
        """The products of gradients by the stream (g, n, T, D) with each writer's change: (g, writers, n).

        writers: the graph's first ones.
        """
        changes = self.changes(len(writers), images, cut=cut).flatten(2).transpose(0, 1)
        return (changes @ gradients.flatten(2).permute(1, 2, 0)).permute(2, 1, 0)

    def changes(self, count: int, images: slice, *, cut: bool) -> Tensor:
        """The changes of the graph's first `count` writers: (count, n, T, D)."""
        whole = self._there(self._whole[:count, images])
        if not cut:
            return whole
        later = [changes for index, changes in self._changes.items() if index >= self.narrowed.start]
        return torch.cat([self.narrowed.cut(whole), *(self._there(changes[:, images]) for changes in later)])[:count]

    def _there(self, changes: Tensor) -> Tensor:
        """On the model's device: changes in a file are mapped into the host's memory."""
        return changes.to(self.logits.device)


def mapped(folder: Path, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Zeros of this shape, on the CPU, in a nameless file in the folder. Its space is freed once nothing refers to the
    tensor, even if the process is killed.

    Raises WriteError where the folder has no room for it.
    """
    count = math.prod(shape)
    size = max(1, count * dtype.itemsize)
    with writing(folder), tempfile.TemporaryFile(dir=folder) as file:
        file.truncate(size)
        if hasattr(os, "posix_fallocate"):
            # Otherwise a full disk would kill the process at some write in the middle of its work.
            os.posix_fallocate(file.fileno(), 0, size)
        return torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=dtype, count=count).view(tuple(shape))

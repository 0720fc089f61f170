"""What a change in some writers' output does to the logits, on the edge and the qkv graph.

The readers behind that see none of it keep what they have; the others add the change to what they read, and pass on
what that changes in turn, edge by edge. Heads and paths without a kept way to the logits are not computed at all.
What everybody reads in the circuit as it stands is worked out once, before the first trial, so that no rounding piles
up from trial to trial.

Shapes: n images of a batch, N images of the process, T tokens, D width, E inner channels of a sublayer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vitfx.circuits.edge_table import Wiring
from vitfx.discovery.basis.protocol import BATCH, Chosen, batches
from vitfx.discovery.engines.clean_run import CleanRun
from vitfx.discovery.engines.partial_sublayers import Step, Units
from vitfx.discovery.engines.pullback import Pullback
from vitfx.graph.narrow import NarrowingStage
from vitfx.graph.stages import contribution

Follow = Callable[[Step, Tensor, Callable[[Step, Tensor], Tensor]], Tensor]
"""A step, what its readers read, and what takes the step -> what it makes of that."""


class Downstream:
    """Everything behind the sublayer at `stage`, of which the writers in `rows` are going to change."""

    def __init__(self, run: CleanRun, wiring: Wiring, stage: int, rows: Sequence[int], inner: Tensor) -> None:
        """inner: what the sublayer puts out in the circuit as it stands, (N, T, E)."""
        self.run, self.wiring, self.stage = run, wiring, stage
        self.steps = self._plan(list(rows))
        self.missed = wiring.missed(stage)
        self._more = sum(len(step.units.rows) for step in self.steps if step.units is not None)
        stream = run.streams[stage][:BATCH]
        self._memory = stream.new_empty((len(rows) + self._more) * stream.numel())
        self._fill(inner)

    def _plan(self, changed: list[int]) -> list[Step]:
        wiring, steps = self.wiring, []
        for index in range(self.stage + 1, self.run.logits_stage + 1):
            readers = [row for row in wiring.alive_readers(index) if bool(wiring.seen[row, changed].any())]
            if not readers:
                continue
            rows = wiring.alive_writers(index)
            heads = {wiring.readers[row].head for row in readers}
            if None not in heads:
                rows = [row for row in rows if wiring.writers[row].index in heads]
            mask = wiring.seen[readers][:, changed].to(self.run.logits)
            units = Units(self.run.narrowed.stages[index], wiring, rows) if rows else None
            steps.append(Step(index, readers, mask, units))
            changed = [*changed, *rows]
        return steps

    def logits(self, images: Chosen, changes: Tensor, follow: Follow | None = None) -> Tensor:
        """What becomes of the logits, (n, K), when the rows' outputs change by (rows, n, T, D). follow: takes the
        steps instead."""
        narrow = self.run.narrowed.start
        cut = self.stage >= narrow
        known = _Changes(changes, self._more, self._memory)

        def make(step: Step, read: Tensor) -> Tensor:
            return self._made(step, read, images)

        for step in self.steps:
            if step.index > narrow and not cut:
                known.cut(self.run.narrowed.tokens)
                cut = True
            read = (step.mask @ known.rows.flatten(1)).unflatten(1, known.rows.shape[1:]) + step.read[:, images]
            made = make(step, read) if follow is None else follow(step, read, make)
            if step.units is None:
                return made
            if isinstance(step.units.stage, NarrowingStage) and not cut:
                known.cut(step.units.stage.tokens)
                cut = True
            known.add(made)
        raise AssertionError("an alive writer has a way to the logits")

    def _made(self, step: Step, read: Tensor, images: Chosen) -> Tensor:
        """What the step's rows put out more than they did, (rows, n, T, D), or the logits, when its readers read
        (readers, n, T, D)."""
        if step.units is None:
            return self.run.classify(read[0])
        readers = [self.wiring.readers[row] for row in step.readers]
        parts = step.units.parts(readers, read, [part[images] for part in step.parts])
        return step.units.by_row(step.units.inner(read, parts) - step.inner[images])

    def tracked(self, images: Chosen, seen: Tensor, change: Callable[[Tensor], Tensor]) -> Pullback:
        """The run of some images from what a reader sees, (n, T, D). change: that -> the rows' changes."""
        pullback = Pullback(seen, change, self._memory, self.run.narrowed.tokens)
        with torch.no_grad():
            pullback.logits = self.logits(images, pullback.changes, pullback.follow)
        return pullback

    @torch.no_grad()
    def _fill(self, inner: Tensor) -> None:
        """One run of the circuit as it stands from the sublayer on, keeping what the steps start from."""
        pieces: dict[int, list[tuple[Tensor, list[Tensor], Tensor]]] = {step.index: [] for step in self.steps}
        for images in batches(len(self.run.logits)):
            walk = _Walk(self, images, inner[images])
            for index in range(self.stage + 1, self.run.logits_stage + 1):
                found = walk.step(index, next((one for one in self.steps if one.index == index), None))
                if found is not None:
                    pieces[index].append(found)
        for step in self.steps:
            reads, parts, inners = zip(*pieces[step.index], strict=True)
            step.read = torch.cat(reads, dim=1)
            step.parts = [torch.cat(one) for one in zip(*parts, strict=True)]
            step.inner = torch.cat(inners)


class _Changes:
    """The changes of ever more writers, (rows, n, T, D), in one piece of memory: the rows so far are not copied for
    each that are added."""

    def __init__(self, rows: Tensor, more: int, memory: Tensor) -> None:
        """more: how many will be added. memory: numbers enough for all, used again by every trial: the system takes as
        long to find so much anew as a layer takes."""
        self.rows, self._more = rows, more
        self._lay_out(memory)

    def cut(self, tokens: Tensor | None) -> None:
        """Only these tokens go on."""
        self.rows = self.rows[:, :, tokens]
        self._lay_out(self.rows.new_empty((len(self.rows) + self._more) * self.rows[0].numel()))

    def add(self, made: Tensor) -> None:
        start, self._more = len(self.rows), self._more - len(made)
        self._whole[start : start + len(made)] = made
        self.rows = self._whole[: start + len(made)]

    def _lay_out(self, memory: Tensor) -> None:
        count, shape = len(self.rows) + self._more, self.rows.shape[1:]
        self._whole = memory[: count * shape.numel()].view(count, *shape)
        self._whole[: len(self.rows)] = self.rows
        self.rows = self._whole[: len(self.rows)]


class _Walk:
    """A batch on its way through the circuit as it stands."""

    def __init__(self, downstream: Downstream, images: Chosen, inner: Tensor) -> None:
        self.down, self.run, self.wiring, self.images = downstream, downstream.run, downstream.wiring, images
        stage = self.run.narrowed.stages[downstream.stage]
        module = stage.sublayer
        assert module is not None
        stream = self.run.streams[downstream.stage][images]
        self.changes = stream.new_zeros(len(self.wiring.writers), *stream.shape)
        for index in range(self.run.graph.first - 1, downstream.stage):
            self._read_before(index)
        self._write(downstream.stage, stream, inner)

    def _read_before(self, index: int) -> None:
        """The changes that removing a writer of the whole model makes, where a reader behind does without it."""
        cut = self.down.stage > self.run.narrowed.start
        for row in self.wiring.writers_of(index):
            if self.down.missed[row]:
                self.changes[row] = self.run.change(index, [self.wiring.writers[row]], self.images, cut=cut)

    def _write(self, index: int, stream: Tensor, inner: Tensor) -> None:
        """inner: of the whole sublayer, (n, T, E)."""
        stage = self.run.narrowed.stages[index]
        module = stage.sublayer
        assert module is not None
        if isinstance(stage, NarrowingStage):
            self.changes = self.changes[:, :, stage.tokens]
        self.stream = stage.carried(stream) + module.out(inner)
        reference = self.run.reference_of(index, self.images).to(inner)
        for row in self.wiring.writers_of(index):
            if self.down.missed[row]:
                self.changes[row] = contribution(module, self.wiring.writers[row].units, reference - inner)

    def step(self, index: int, wanted: Step | None) -> tuple[Tensor, list[Tensor], Tensor] | None:
        """Runs a stage; what the wanted step starts from."""
        stage = self.run.narrowed.stages[index] if index < self.run.logits_stage else None
        if stage is not None and stage.sublayer is None:
            self.stream = stage(self.stream)
            return None
        readers = self.wiring.alive_readers(index)
        if stage is not None and not readers:
            self._write(index, self.stream, self._ablated(index))
            return None
        mask = (~self.wiring.seen[readers]).to(self.stream)
        read = self.stream + (mask @ self.changes.flatten(1)).unflatten(1, self.stream.shape)
        chosen = [] if wanted is None else [readers.index(row) for row in wanted.readers]
        if stage is None:
            return read[chosen], [], read.new_zeros(read.shape[1])
        alive = Units(stage, self.wiring, self.wiring.alive_writers(index))
        parts = alive.parts([self.wiring.readers[row] for row in readers], read)
        whole = self._ablated(index).index_copy(2, alive.channels, alive.inner(read, parts))
        found = None
        if wanted is not None and wanted.units is not None:
            heads = [alive.units.index(unit) for unit in wanted.units.units] if parts else []
            found = read[chosen], [part[:, heads] for part in parts], whole[..., wanted.units.channels]
        self._write(index, self.stream, whole)
        return found

    def _ablated(self, index: int) -> Tensor:
        """The inner channels' reference: what is dead is seen by nobody that matters, and may be anything."""
        stage = self.run.narrowed.stages[index]
        carried = stage.carried(self.stream)
        reference = self.run.reference_of(index, self.images).to(carried)
        return reference.expand(*carried.shape[:2], -1)

"""What a change in some writers' output does to the logits, on the edge and the qkv graph.

Readers behind that see none of the change stay as they are. The others add it to what they read, and pass on what that
changes in turn, edge by edge. Heads and paths from which no chain of kept edges leads to the logits are not computed at
all. What each reader reads in the circuit as it stands is computed once, before the first trial, so that rounding does
not pile up from trial to trial.

Shapes: n images of a batch, N images of the process, T tokens, D width, E inner channels of a sublayer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from vitfx.circuits.edge_table import Wiring
from vitfx.discovery.basis.protocol import BATCH, Chosen, batches
from vitfx.discovery.engines.clean_run import CleanRun
from vitfx.discovery.engines.partial_sublayers import DownstreamStep, Units
from vitfx.discovery.engines.pullback import Pullback
from vitfx.graph.narrow import NarrowingStage
from vitfx.graph.stages import contribution

Follow = Callable[[DownstreamStep, Tensor, Callable[[DownstreamStep, Tensor], Tensor]], Tensor]
"""From a step, what its readers read, and the function that takes the step, to that function's value."""


class Downstream:
    """Everything behind one sublayer, of which some writers are going to change."""

    def __init__(self, run: CleanRun, wiring: Wiring, stage: int, rows: Sequence[int], inner: Tensor) -> None:
        """
        stage: the sublayer's index.
        rows: the writers that are going to change.
        inner: the sublayer's inner channels in the circuit as it stands, (N, T, E).
        """
        self.run, self.wiring, self.stage = run, wiring, stage
        self.steps = self._plan(list(rows))
        self.missed = wiring.missed(stage)
        self._more = sum(len(step.units.rows) for step in self.steps if step.units is not None)
        stream = run.read(stage)[:BATCH]
        self._memory = stream.new_empty((len(rows) + self._more) * stream.numel())
        self._fill(inner)

    def _plan(self, changed: list[int]) -> list[DownstreamStep]:
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
            steps.append(DownstreamStep(index, readers, mask, units))
            changed = [*changed, *rows]
        return steps

    def logits(self, images: Chosen, changes: Tensor, follow: Follow | None = None) -> Tensor:
        """The logits (n, K) if the rows' outputs change by (rows, n, T, D). follow: takes the steps instead."""
        narrow = self.run.narrowed.start
        cut = self.stage >= narrow
        known = _Changes(changes, self._more, self._memory)

        def make(step: DownstreamStep, read: Tensor) -> Tensor:
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
        raise AssertionError("a writer that is alive reaches the logits")

    def _made(self, step: DownstreamStep, read: Tensor, images: Chosen) -> Tensor:
        """By how much the output of the step's rows changes, (rows, n, T, D), if its readers read (readers, n, T, D);
        of the last step, the logits."""
        if step.units is None:
            return self.run.classify(read[0])
        readers = [self.wiring.readers[row] for row in step.readers]
        parts = step.units.parts(readers, read, [part[images] for part in step.parts])
        return step.units.by_row(step.units.inner(read, parts) - step.inner[images])

    def tracked(self, images: Chosen, seen: Tensor, change: Callable[[Tensor], Tensor]) -> Pullback:
        """The run of some images from what readers see. change: from that to the rows' changes (rows, n, T, D)."""
        pullback = Pullback(seen, change, self._memory, self.run.narrowed.tokens)
        with torch.no_grad():
            pullback.logits = self.logits(images, pullback.changes, pullback.follow)
        return pullback

    @torch.no_grad()
    def _fill(self, inner: Tensor) -> None:
        """Runs the circuit as it stands from the sublayer on, and keeps what the steps start from."""
        pieces: dict[int, list[tuple[Tensor, list[Tensor], Tensor]]] = {step.index: [] for step in self.steps}
        for images in batches(len(self.run.logits)):
            walk = _Walk(self, images, inner[images])
            for index in range(self.stage + 1, self.run.logits_stage + 1):
                start = walk.step(index, next((step for step in self.steps if step.index == index), None))
                if start is not None:
                    pieces[index].append(start)
        for step in self.steps:
            reads, parts, inners = zip(*pieces[step.index], strict=True)
            step.read = torch.cat(reads, dim=1)
            step.parts = [torch.cat(part) for part in zip(*parts, strict=True)]
            step.inner = torch.cat(inners)


class _Changes:
    """The changes of ever more writers, (rows, n, T, D), in one tensor, so that adding rows does not copy the earlier
    ones."""

    def __init__(self, rows: Tensor, more: int, memory: Tensor) -> None:
        """
        more: how many rows will be added.
        memory: large enough for all, and used again by every trial: allocating it anew takes as long as a layer.
        """
        self.rows, self._more = rows, more
        self._lay_out(memory)

    def cut(self, tokens: Tensor | None) -> None:
        """Keeps these tokens alone."""
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
    """The run of a batch through the circuit as it stands."""

    def __init__(self, downstream: Downstream, images: Chosen, inner: Tensor) -> None:
        self.down, self.run, self.wiring, self.images = downstream, downstream.run, downstream.wiring, images
        stream = self.run.streams[downstream.stage][images]
        read = self.run.narrowed.stages[downstream.stage].read(stream)
        self.changes = stream.new_zeros(len(self.wiring.writers), *read.shape)
        for index in range(self.run.graph.first - 1, downstream.stage):
            self._read_before(index)
        self._write(downstream.stage, stream, inner)

    def _read_before(self, index: int) -> None:
        """The changes of a stage's writers that some reader behind does not see, from the whole model's run."""
        cut = self.down.stage > self.run.narrowed.start
        for row in self.wiring.writers_of(index):
            if self.down.missed[row]:
                self.changes[row] = self.run.change(index, [self.wiring.writers[row]], self.images, cut=cut)

    def _write(self, index: int, stream: Tensor, inner: Tensor) -> None:
        """inner: the inner channels of the whole sublayer, (n, T, E)."""
        stage = self.run.narrowed.stages[index]
        module = stage.sublayer
        assert module is not None
        if isinstance(stage, NarrowingStage):
            self.changes = self.changes[:, :, stage.tokens]
        self.stream = stage.behind(stream, inner)
        reference = self.run.reference_of(index, self.images).to(inner)
        for row in self.wiring.writers_of(index):
            if self.down.missed[row]:
                self.changes[row] = contribution(module, self.wiring.writers[row].units, reference - inner)

    def step(self, index: int, wanted: DownstreamStep | None) -> tuple[Tensor, list[Tensor], Tensor] | None:
        """Runs a stage, and gives what the wanted step starts from: what its readers read, its parts and inner
        channels."""
        stage = self.run.narrowed.stages[index] if index < self.run.logits_stage else None
        if stage is not None and stage.sublayer is None:
            self.stream = stage(self.stream)
            return None
        readers = self.wiring.alive_readers(index)
        if stage is not None and not readers:
            self._write(index, self.stream, self._ablated(index))
            return None
        mask = self.wiring.gone[readers].to(self.stream)
        whole = self.stream if stage is None else stage.read(self.stream)
        read = whole + (mask @ self.changes.flatten(1)).unflatten(1, whole.shape)
        chosen = [] if wanted is None else [readers.index(row) for row in wanted.readers]
        if stage is None:
            return read[chosen], [], read.new_zeros(read.shape[1])
        alive = Units(stage, self.wiring, self.wiring.alive_writers(index))
        parts = alive.parts([self.wiring.readers[row] for row in readers], read)
        inner = self._ablated(index).index_copy(2, alive.channels, alive.inner(read, parts))
        self._write(index, self.stream, inner)
        if wanted is None or wanted.units is None:
            return None
        heads = [alive.units.index(unit) for unit in wanted.units.units] if parts else []
        return read[chosen], [part[:, heads] for part in parts], inner[..., wanted.units.channels]

    def _ablated(self, index: int) -> Tensor:
        """The reference of the inner channels. No live reader sees those of dead writers, so any value does."""
        stage = self.run.narrowed.stages[index]
        carried = stage.carried(self.stream)
        reference = self.run.reference_of(index, self.images).to(carried)
        return reference.expand(*carried.shape[:2], -1)

"""The edge graph: who reads which writer of the residual stream, and the model run with any set of edges removed.

Writers are the embedding, each attention head and each MLP path. The embedding is the stream that the first prunable
sublayer reads, so it includes any unrecognised step before that. There are four granularities. With L layers of H
heads and P paths, and W(l) = 1 + l·(H + P) writers before layer l, they have this many edges:

    block   the embedding and whole sublayers, one edge each into the stream     1 + 2L
    head    each writer, one edge into the stream                                W(L)
    edge    each writer → each later head, MLP and the logits                    Σ_l [H·W(l) + W(l) + H] + W(L)
    qkv     the same, with a head's queries, keys and values separate readers    Σ_l [3H·W(l) + W(l) + H] + W(L)

12 layers of 6 heads and 8 paths have 25, 169, 6,793 and 18,025 edges. On the edge and the qkv graph a reader sees the
stream with, for each of its removed edges, the writer's reference in place of what the writer adds now. Biases belong
to no writer. An unrecognised step between sublayers reads the whole stream: the block and the head graph run through
it, the edge and the qkv graph refuse it. So they do with attention pooling, behind which the stream is another.

Shapes: N images, T tokens, D width, E inner channels of a sublayer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule

from passes.dialect import Attention, Sublayer
from vitfx.circuits.circuit import EMBED, GRANULARITIES, LOGITS, PARTS, Edge, Reader, Writer
from vitfx.graph.stages import (
    Reference,
    Stage,
    contribution,
    project_heads,
    read_stages,
    replaced,
    run_stages,
    streams_at,
    sublayers_of,
)
from vitfx.support.errors import NothingPrunable, UserError

Paths = Mapping[str, Sequence[Sequence[int]]]
"""The hidden neurons of each path, for each MLP by its name."""

STREAM_READER = Reader()
LOGITS_READER = Reader(LOGITS)


class EdgeGraph:
    """The oracle that every engine is tested against: a run computes everything, then replaces what was removed.

    Raises ValueError for an unknown granularity, and where an MLP's paths do not hold each of its neurons once;
    UserError where no sublayer is left, or where a reader-level graph has an unrecognised step between sublayers.
    """

    def __init__(self, graph_module: GraphModule, paths: Paths, granularity: str = "head") -> None:
        if granularity not in GRANULARITIES:
            raise ValueError(f"granularity {granularity!r} is not one of {', '.join(GRANULARITIES)}")
        self.granularity = granularity
        self.stages = read_stages(graph_module)
        sublayers = [index for index, stage in enumerate(self.stages) if stage.norm is not None]
        if not sublayers:
            raise NothingPrunable
        self.first, self.last = sublayers[0], sublayers[-1]
        unseen = [stage for stage in self.stages[self.first : self.last + 1] if stage.reads_unseen]
        if unseen and not self.reads_stream:
            what = "pools the stream by attention" if unseen[0].carry is not None else "is not recognised"
            raise UserError(
                f"{unseen[0].name} {what} and reads the stream in ways that the {granularity} graph can't take "
                "apart: choose `granularity` head or block"
            )
        coupled = [name for name, module in sublayers_of(self.stages).items() if _couples_heads(module)]
        if coupled and not self.reads_stream:
            raise UserError(
                f"the norm behind the heads of {coupled[0]} couples them, so that the {granularity} graph can't tell "
                "what each reads: choose `granularity` head or block"
            )
        self.writers = (Writer(EMBED), *self._sublayer_writers(paths))
        self.readers = tuple(self._readers())

    def _sublayer_writers(self, paths: Paths) -> list[Writer]:
        writers = []
        for name, module in sublayers_of(self.stages).items():
            if self.granularity == "block":
                writers.append(Writer(name, None, tuple(range(module.units))))
                continue
            groups = paths[name] if module.kind == "neuron" else [[head] for head in range(module.units)]
            if sorted(unit for group in groups for unit in group) != list(range(module.units)):
                raise ValueError(f"the paths of {name} do not hold each of its {module.units} neurons once")
            writers += [Writer(name, index, tuple(sorted(group))) for index, group in enumerate(groups)]
        return writers

    def _readers(self) -> Iterable[Reader]:
        if self.reads_stream:
            yield STREAM_READER
            return
        parts: tuple[str | None, ...] = PARTS if self.granularity == "qkv" else (None,)
        for stage in self.stages:
            if isinstance(stage.module, Attention):
                yield from (Reader(stage.name, head, part) for head in range(stage.module.units) for part in parts)
            elif stage.sublayer is not None:
                yield Reader(stage.name)
        yield LOGITS_READER

    @property
    def reads_stream(self) -> bool:
        """On the block and the head graph: the stream is the only reader, so an edge stands for its writer."""
        return self.granularity in ("block", "head")

    def parents(self, reader: Reader) -> tuple[Writer, ...]:
        """The writers before a reader, in the order of the stream."""
        if reader in (STREAM_READER, LOGITS_READER):
            return self.writers
        at = self.reads_at(reader.sublayer)
        return tuple(
            writer for writer in self.writers if writer.sublayer == EMBED or self.stage_index(writer.sublayer) < at
        )

    def writers_of(self, sublayer: str) -> list[Writer]:
        return [writer for writer in self.writers if writer.sublayer == sublayer]

    def readers_of(self, sublayer: str) -> list[Reader]:
        return [reader for reader in self.readers if reader.sublayer == sublayer]

    def edges(self) -> tuple[Edge, ...]:
        return tuple(Edge(writer, reader) for reader in self.readers for writer in self.parents(reader))

    def stage_index(self, sublayer: str) -> int:
        """The place of a sublayer among the stages. The logits' is the one behind the last sublayer."""
        if sublayer == LOGITS:
            return self.last + 1
        return next(index for index, stage in enumerate(self.stages) if stage.name == sublayer)

    def reads_at(self, sublayer: str) -> int:
        """The stage before which the stream is what a sublayer reads: an MLP beside an attention reads what that one
        reads."""
        index = self.stage_index(sublayer)
        return index - 1 if index <= self.last and self.stages[index].joins else index

    def run(self, pixels: Tensor, removed: Collection[Edge] = (), reference: Reference | None = None) -> Tensor:
        """(N, C, H, W) -> logits (N, K); each removed edge's reader sees the writer's reference instead."""
        run = _Run(self, removed, reference)
        for index, reading in enumerate(streams_at(self.stages, pixels)):
            if index == self.first:
                reading.stream = run.write_embedding(reading.stream)
            if index == self.last + 1:
                (reading.stream,) = run.seen(reading.stream, [LOGITS_READER])
            if reading.stage.sublayer is not None:
                reading.inner = run.write(reading.stage, reading.stage.sublayer, reading.stream)
        return reading.behind

    @torch.no_grad()
    def embedding(self, pixels: Tensor) -> Tensor:
        """(N, C, H, W) -> the stream that the first prunable sublayer reads (N, T, D)."""
        return run_stages(self.stages[: self.first], pixels)


def inner_apart(stage: Stage, seen: Tensor) -> Tensor:
    """A sublayer's inner channels (N, T, E), from the stream as each of its readers sees it: (readers, N, T, D)."""
    module = stage.sublayer
    assert module is not None and stage.norm is not None
    read = stage.norm(seen)
    if not isinstance(module, Attention):
        return module.inner(read[0])
    parts = len(read) // module.units
    q, k, v = (
        project_heads(linear, module.units, read[min(part, parts - 1) :: parts])
        for part, linear in enumerate((module.q, module.k, module.v))
    )
    heads: Tensor = module.core(q, k, v)
    return heads


def _couples_heads(module: Sublayer) -> bool:
    return isinstance(module, Attention) and module.inner_norm is not None


class _Run:
    """One run: for each writer that some reader does not see, what it has written less its reference."""

    def __init__(self, graph: EdgeGraph, removed: Collection[Edge], reference: Reference | None) -> None:
        self.graph, self.reference = graph, reference
        self.unseen: dict[Reader, list[Writer]] = {}
        for edge in removed:
            self.unseen.setdefault(edge.reader, []).append(edge.writer)
        self.gone = self.unseen.pop(STREAM_READER, [])
        unseen = {writer for writers in self.unseen.values() for writer in writers}
        self.rows = {writer: row for row, writer in enumerate(sorted(unseen, key=graph.writers.index))}
        self.deltas = torch.empty(0)

    def write_embedding(self, stream: Tensor) -> Tensor:
        embed = self.graph.writers[0]
        if embed in self.gone:
            stream = self._reference(EMBED).to(stream).expand_as(stream)
        if self.rows:
            self.deltas = stream.new_zeros(len(self.rows), *stream.shape)
        if embed in self.rows:
            self.deltas[self.rows[embed]] = stream - self._reference(EMBED).to(stream)
        return stream

    def write(self, stage: Stage, module: Sublayer, stream: Tensor) -> Tensor:
        """The inner channels that a sublayer writes."""
        inner = self._inner(stage, stream)
        units = [unit for writer in self.gone if writer.sublayer == stage.name for unit in writer.units]
        if units:
            inner = replaced(stage, inner, units, self._reference(stage.name))
        for writer, row in self.rows.items():
            if writer.sublayer == stage.name:
                change = inner - self._reference(stage.name).to(inner)
                self.deltas[row] = contribution(module, writer.units, change)
        return inner

    def seen(self, stream: Tensor, readers: Sequence[Reader]) -> Tensor:
        """The stream (N, T, D) as each reader sees it: (readers, N, T, D)."""
        if not any(reader in self.unseen for reader in readers):
            return stream.expand(len(readers), *stream.shape)
        mask = stream.new_zeros(len(readers), len(self.rows))
        for index, reader in enumerate(readers):
            mask[index, [self.rows[writer] for writer in self.unseen.get(reader, [])]] = 1
        return stream - torch.unflatten(mask @ self.deltas.flatten(1), 1, stream.shape)

    def _inner(self, stage: Stage, stream: Tensor) -> Tensor:
        readers = self.graph.readers_of(stage.name)
        if not any(reader in self.unseen for reader in readers):
            return stage.inner(stream)
        return inner_apart(stage, self.seen(stage.read(stream), readers))

    def _reference(self, name: str) -> Tensor:
        if self.reference is None or name not in self.reference:
            raise ValueError(f"edges of {name} are removed, but there is no reference for it")
        return self.reference[name]

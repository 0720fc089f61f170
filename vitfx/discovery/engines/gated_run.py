"""The edge graph with each edge's gate anywhere from 0 to 1, and the gradient of a run's answers along all gates.

Through an edge w → r with the gate z the reader sees ref_w + z (out_w − ref_w), with out_w what the writer adds in this
run (Bhaskar et al. 2024, arXiv:2406.16778, section 3): 1 is a whole edge, and 0 one that is removed. So with gates of
0 and 1 a run is that of `EdgeGraph.run`.

Shapes: n images of a batch, T tokens, D width, E edges, R readers, W writers, K answers.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vitfx.circuits.circuit import EMBED
from vitfx.circuits.edge_graph import EdgeGraph, inner_apart
from vitfx.circuits.edge_table import Wiring
from vitfx.discovery.engines.second_order import TrackedLogits
from vitfx.graph.stages import Reference, Stage, contribution, of_images, run_stages, streams_at, sublayers_of


class GatedGraph:
    """Memory of a run, in numbers: on the block and the head graph what autograd keeps of the whole model's; on the
    others n·T·D·(3W + 2R) for what writers add and readers see, and what autograd keeps inside the sublayers."""

    def __init__(self, graph: EdgeGraph, reference: Reference) -> None:
        self.graph, self.reference = graph, reference
        #: for each sublayer the place of each inner channel's writer
        self.writer_of = {name: self._places(name) for name in sublayers_of(graph.stages)}
        if not graph.reads_stream:
            self.exists = Wiring(graph).seen  #: bool (R, W), row by row in the order of `graph.edges()`

    def run(self, pixels: Tensor, gates: Tensor, images: slice | Tensor) -> TrackedLogits:
        """pixels: (n, C, H, W). gates: (E,), in the order of `graph.edges()`. images: the pixels' places among those
        that the reference was made for.

        The answer's `back` gives the gradient by the gates, and may be called once.
        """
        embedding = self.graph.embedding(pixels)
        gates = gates.detach().to(embedding)
        reference = {name: of_images(value, images).to(embedding) for name, value in self.reference.items()}
        if self.graph.reads_stream:
            return _StreamRun(self, embedding, gates, reference)
        return _ReaderRun(self, embedding, gates, reference)

    def _places(self, sublayer: str) -> Tensor:
        module = sublayers_of(self.graph.stages)[sublayer]
        places = torch.zeros(module.units, dtype=torch.int64)
        for place, writer in enumerate(self.graph.writers):
            if writer.sublayer == sublayer:
                places[list(writer.units)] = place
        return places.repeat_interleave(module.channels).to(module.out.weight.device)


class _StreamRun:
    """On the block and the head graph, whose edges are the writers' into the stream."""

    def __init__(self, gated: GatedGraph, embedding: Tensor, gates: Tensor, reference: Reference) -> None:
        self._gates = gates.requires_grad_()
        graph = gated.graph
        with torch.enable_grad():
            stream = _mixed(reference[EMBED], embedding, self._gates[0])
            for reading in streams_at(graph.stages[graph.first :], stream):
                name = reading.stage.name
                if reading.stage.sublayer is not None:
                    reading.inner = _mixed(reference[name], reading.inner, self._gates[gated.writer_of[name]])
            self._logits = reading.behind
        self.logits = self._logits.detach()

    def back(self, cotangent: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(self._logits, self._gates, cotangent)
        return gradient


def _mixed(ablated: Tensor, value: Tensor, gates: Tensor) -> Tensor:
    return ablated + gates * (value - ablated)


@dataclass(frozen=True)
class _Step:
    """A sublayer, or the logits, that read the stream."""

    readers: slice  #: rows of the gates
    before: int  #: how many writers they read: the first ones
    writers: slice  #: rows of what it adds; of the logits none
    seen: Tensor  #: (readers, n, T, D), where autograd's record begins
    made: Tensor  #: what its writers add less their references, (writers, n, T, D); of the logits (n, K)


class _ReaderRun:
    """On the edge and the qkv graph. All readers see the stream of the ablated model and, of what each writer adds to
    that, as much as their gates let through.

    What goes on inside a sublayer is left to autograd. Between sublayers gradients are added up by hand, because
    autograd would keep what every writer adds anew for each sublayer behind it.
    """

    def __init__(self, gated: GatedGraph, embedding: Tensor, gates: Tensor, reference: Reference) -> None:
        self._gated, self._graph = gated, gated.graph
        self._gates = gates.new_zeros(gated.exists.shape)
        self._gates[gated.exists.to(gates.device)] = gates
        self._added = embedding.new_empty(len(self._graph.writers), *embedding.shape)
        self._added[0] = embedding - reference[EMBED]
        self._steps = list(self._forward(reference))
        self.logits = self._steps[-1].made.detach()

    def _forward(self, reference: Reference) -> Iterator[_Step]:
        graph = self._graph
        ablated = reference[EMBED].expand(self._added.shape[1:])
        reader, writer = 0, 1
        for stage in graph.stages[graph.first : graph.last + 1]:
            if stage.sublayer is None:
                ablated = _behind(stage, ablated, reference)
                continue
            readers = slice(reader, reader + len(graph.readers_of(stage.name)))
            writers = slice(writer, writer + len(graph.writers_of(stage.name)))
            before = len(graph.parents(graph.readers_of(stage.name)[0]))
            seen = self._seen(stage.read(ablated), readers, before)
            with torch.enable_grad():
                made = self._writes(stage, seen, reference[stage.name])
            self._added[writers] = made.detach()
            yield _Step(readers, before, writers, seen, made)
            ablated = _behind(stage, ablated, reference)
            reader, writer = readers.stop, writers.stop
        seen = self._seen(ablated, slice(reader, reader + 1), writer)
        with torch.enable_grad():
            logits = run_stages(graph.stages[graph.last + 1 :], seen[0])
        yield _Step(slice(reader, reader + 1), writer, slice(writer, writer), seen, logits)

    @torch.no_grad()
    def _seen(self, ablated: Tensor, readers: slice, before: int) -> Tensor:
        added = self._gates[readers, :before] @ self._added[:before].flatten(1)
        return (ablated + torch.unflatten(added, 1, ablated.shape)).requires_grad_()

    def _writes(self, stage: Stage, seen: Tensor, reference: Tensor) -> Tensor:
        assert stage.sublayer is not None
        change = inner_apart(stage, seen) - reference
        writers = self._graph.writers_of(stage.name)
        return torch.stack([contribution(stage.sublayer, writer.units, change) for writer in writers])

    def back(self, cotangent: Tensor) -> Tensor:
        gradients = torch.zeros_like(self._gates)
        by_writer = torch.zeros_like(self._added)
        while self._steps:
            step = self._steps.pop()
            behind = cotangent if step.writers.start == step.writers.stop else by_writer[step.writers]
            (by_seen,) = torch.autograd.grad(step.made, step.seen, behind)
            flat, earlier = by_seen.flatten(1), slice(step.before)
            gradients[step.readers, earlier] = flat @ self._added[earlier].flatten(1).T
            by_writer[earlier].flatten(1).addmm_(self._gates[step.readers, earlier].T, flat)
        return gradients[self._gated.exists.to(gradients.device)]


@torch.no_grad()
def _behind(stage: Stage, ablated: Tensor, reference: Reference) -> Tensor:
    """The ablated model's stream behind a stage."""
    if stage.sublayer is None:
        return run_stages([stage], ablated)
    return stage.behind(ablated, reference[stage.name].expand(*ablated.shape[:2], -1))

"""How an image's metric changes with every edge of the graph, from one backward pass: the ground of all attributions.

The derivative along the edge w → r is Σ_{t,d} (ref_w − clean_w) · ∂metric/∂x_r, with x_r the stream as r alone reads it
(Nanda 2023; Syed et al. 2024, arXiv:2310.10348, equation 2). The run is that of the whole model. Its backward pass
stops at the queries, keys and values. From there each reader's gradient is taken back separately, through the reader's
own rows and the LayerNorm, one layer at a time, so that no reader's copy of the stream outlives its layer. On the block
and the head graph the reader is the stream behind the writer.

Shapes: n images of a batch, T tokens, D width, E inner channels, W writers, R readers of one sublayer.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from passes.dialect import Attention, Sublayer
from vitfx.circuits.circuit import EMBED
from vitfx.circuits.edge_graph import LOGITS_READER, EdgeGraph
from vitfx.discovery.basis.calibration import Calibration
from vitfx.discovery.basis.metric import Metric
from vitfx.discovery.basis.protocol import BATCH, batches
from vitfx.graph.stages import (
    Reading,
    Reference,
    Stage,
    contribution,
    of_images,
    run_stages,
    streams_at,
    sublayers_of,
)
from vitfx.support.progress import Report


@dataclass(frozen=True)
class _Tap:
    """Where a run's gradients are taken for some readers."""

    values: tuple[Tensor, ...]  #: tensors of the run, whose gradients give those of the readers
    writers: slice  #: rows of the writers that they read
    stage: Stage | None = None  #: that they belong to; None where a reader reads the stream without a norm
    stream: Tensor | None = None  #: that the stage's norm reads


class TrackedRun:
    """A run of the whole model from an embedding (n, T, D) on, with what the derivatives along its edges need."""

    def __init__(self, graph: EdgeGraph, embedding: Tensor, fixed: Mapping[str, Tensor] | None = None) -> None:
        """fixed: of some sublayers, inner channels (n, T, E) that stand in for their own, whatever they read."""
        self.graph, self._fixed = graph, fixed or {}
        self._inners: dict[str, Tensor] = {}
        self._taps: list[_Tap] = []
        with torch.enable_grad():
            self.embedding = embedding.detach().requires_grad_()
            if graph.reads_stream:
                self._tap_writers(EMBED, self.embedding)
            for reading in streams_at(graph.stages[graph.first : graph.last + 1], self.embedding):
                if reading.stage.sublayer is not None:
                    self._tap(reading, reading.stage.sublayer)
            if not graph.reads_stream:
                self._taps.append(_Tap((reading.behind,), slice(len(graph.parents(LOGITS_READER)))))
            self._logits = run_stages(graph.stages[graph.last + 1 :], reading.behind)

    @property
    def logits(self) -> Tensor:
        """(n, K), detached."""
        return self._logits.detach()

    @property
    def inners(self) -> dict[str, Tensor]:
        """Each sublayer's inner channels (n, T, E), detached, in the order of the stream."""
        return {name: inner.detach() for name, inner in self._inners.items()}

    def deltas(self, reference: Reference | None, images: slice) -> Tensor:
        """Each writer's reference, zero where there is none, less what it adds in this run: (n, W, T, D).

        images: which of the reference's images the batch is. Of writers behind a pooling, its first tokens are set.
        """
        count, tokens, width = self.embedding.shape
        tokens = max(tokens, *(inner.shape[1] for inner in self._inners.values()))
        deltas = self.embedding.new_empty(count, len(self.graph.writers), tokens, width)
        changes = {}
        for name, value in {EMBED: self.embedding, **self._inners}.items():
            ablated = 0.0 if reference is None else of_images(reference[name], images).to(value)
            changes[name] = ablated - value.detach()
        modules = sublayers_of(self.graph.stages)
        with torch.no_grad():
            for row, writer in enumerate(self.graph.writers):
                module, change = modules.get(writer.sublayer), changes[writer.sublayer]
                change = change if module is None else contribution(module, writer.units, change)
                deltas[:, row, : change.shape[1]] = change
        return deltas

    def derivatives(self, metric: Metric, deltas: Tensor) -> Tensor:
        """Each image's derivative along every edge, float64 (n, edges), in the order of `graph.edges()`.

        It frees the run's memory on the way, so it can be asked only once.
        """
        with torch.enable_grad():
            total = metric(self._logits).sum()
        values = [value for tap in self._taps for value in tap.values]
        # What a fixed sublayer reads makes no difference.
        gradients = iter(torch.autograd.grad(total, values, materialize_grads=True))
        derivatives = []
        for tap in self._taps:
            of_readers = self._of_readers(tap, [next(gradients) for _ in tap.values])
            written = deltas[:, tap.writers, : of_readers.shape[2]].flatten(2)
            derivatives.append((of_readers.transpose(0, 1).flatten(2) @ written.mT).flatten(1))
        return torch.cat(derivatives, dim=1).double()

    def _tap(self, reading: Reading, module: Sublayer) -> None:
        stage = reading.stage
        assert stage.norm is not None
        read = stage.read(reading.stream)
        values: tuple[Tensor, ...] = (stage.norm(read),)
        if isinstance(module, Attention):
            values = tuple(linear(values[0]) for linear in (module.q, module.k, module.v))
            heads = (value.unflatten(-1, (module.units, -1)).transpose(1, 2) for value in values)
            reading.inner = module.core(*heads)
        else:
            reading.inner = module.inner(values[0])
        reading.inner = self._fixed.get(stage.name, reading.inner)
        self._inners[stage.name] = reading.inner
        if self.graph.reads_stream:
            self._tap_writers(stage.name, reading.behind)
            return
        parents = self.graph.parents(self.graph.readers_of(stage.name)[0])
        self._taps.append(_Tap(values, slice(len(parents)), stage, read.detach()))

    def _tap_writers(self, sublayer: str, stream: Tensor) -> None:
        first = self.graph.writers.index(self.graph.writers_of(sublayer)[0])
        self._taps.append(_Tap((stream,), slice(first, first + len(self.graph.writers_of(sublayer)))))

    def _of_readers(self, tap: _Tap, gradients: Sequence[Tensor]) -> Tensor:
        """∂metric/∂x_r for a tap's readers, in the graph's order: (R, n, T, D)."""
        if tap.stage is None:
            return gradients[0][None, ..., : self.embedding.shape[-1]]
        module, norm = tap.stage.module, tap.stage.norm
        assert norm is not None and tap.stream is not None
        if not isinstance(module, Attention):
            return _through(norm, tap.stream, gradients[0][None])
        parts = [
            torch.einsum(
                "nthc,hcd->hntd",
                gradient.unflatten(-1, (module.units, -1)),
                linear.weight.detach().unflatten(0, (module.units, -1)),
            )
            for gradient, linear in zip(gradients, (module.q, module.k, module.v), strict=True)
        ]
        of_parts = torch.stack(parts, dim=1)
        apart = self.graph.granularity == "qkv"
        return _through(norm, tap.stream, of_parts.flatten(0, 1) if apart else of_parts.sum(dim=1))


def _through(norm: nn.Module, stream: Tensor, gradients: Tensor) -> Tensor:
    """Gradients behind a norm (R, n, T, D) -> before it, where each reader has its own copy of the stream (n, T, D)."""
    with torch.enable_grad():
        copies = stream.expand_as(gradients).requires_grad_()
        (before,) = torch.autograd.grad(norm(copies), copies, gradients)
        return before


_NUMBERS = 2**26
"""A batch of n images takes W·n·T·D numbers for what W writers add to T tokens of width D, and one sublayer's readers
besides. Batches are chosen so that W·n·T·D stays below this, but have one image at least."""


def mean_of_edges(
    graph: EdgeGraph, calibration: Calibration, of_batch: Callable[[slice], Tensor], progress: Report | None
) -> Tensor:
    """The mean over the images of all processes, float64 (edges,) on the CPU.

    of_batch: from some of this process's images to (n, edges).
    progress: called with how many of this process's images are done, and how many there are.
    """
    count = len(calibration.clean)
    total = torch.zeros(len(graph.edges()), dtype=torch.float64, device=calibration.clean.device)
    for images in batches(count, images_at_once(graph, calibration.clean)):
        total += of_batch(images).sum(dim=0)
        if progress is not None:
            progress(images.stop, count)
    return calibration.mean(total).cpu()


def images_at_once(graph: EdgeGraph, pixels: Tensor) -> int:
    """How many images make a batch, see `_NUMBERS`."""
    if not len(pixels):
        return 1
    return max(1, min(BATCH, _NUMBERS // (len(graph.writers) * graph.embedding(pixels[:1]).numel())))


def by_name(graph: EdgeGraph, scores: Tensor) -> dict[str, float]:
    """Scores (edges,), in the order of `graph.edges()`, by the edges' names."""
    return dict(zip((edge.name for edge in graph.edges()), scores.tolist(), strict=True))

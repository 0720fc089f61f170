"""Automatic Circuit DisCovery, Algorithm 1 of Conmy et al. 2023 (arXiv:2304.14997), on the head graph.

Readers are visited from the output backwards; of each writer's edge the algorithm asks by how much removing it, on top
of all removed before, raises D_KL(G‖H). Less than τ: the edge goes. Within a sublayer the writers that the Fisher score
holds for least important are asked first; the paper leaves that order open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from vitfx.circuit import EMBED, Decision, Edge, Writer
from vitfx.edge_graph import EdgeGraph, kl_divergence
from vitfx.stages import Reference, Stage, replaced
from vitfx.suffix import DecidedStage, decide, run_decided

BATCH = 32
"""Images run at a time: small enough for the activations of a batch to stay near the cores."""


class Journal(Protocol):
    """Remembers decisions, so that a run that was broken off goes on where it stopped."""

    def recall(self, edge: Edge) -> Decision | None: ...

    def record(self, decision: Decision) -> None: ...


@dataclass(frozen=True)
class Limits:
    """tau: an edge goes if removing it raises D_KL(G‖H) by less than this, in nats an image. max_kl: the most that
    D_KL(G‖H) may reach, whatever τ says."""

    tau: float
    max_kl: float = float("inf")

    def allow(self, kl_new: float, kl: float) -> bool:
        return kl_new - kl < self.tau and kl_new <= self.max_kl


def acdc(
    graph: EdgeGraph,
    pixels: Tensor,
    reference: Reference,
    order: Mapping[str, float],
    limits: Limits,
    journal: Journal,
    progress: Callable[[Decision], None] | None = None,
) -> list[Decision]:
    """Decides every edge of the head graph. pixels: clean images (N, C, H, W). order: an importance for each writer.

    Memory: the streams of all stages, N·T·D·(stages) numbers, beside one sublayer's inner channels.
    """
    with torch.no_grad():
        streams = _clean_streams(graph, pixels)
        clean = streams.pop()
        search = _Search(clean, reference, limits, journal, progress)
        for index in reversed(range(len(graph.stages))):
            stream = streams.pop()
            if index < graph.first:
                break
            search.visit(graph.stages[index], stream, _in_order(graph, graph.stages[index].name, order))
            if index == graph.first:
                search.visit_embedding(stream)
    return search.decisions


def _clean_streams(graph: EdgeGraph, pixels: Tensor) -> list[Tensor]:
    batches = [graph.streams(batch) for batch in pixels.split(BATCH)]
    return [torch.cat(parts) for parts in zip(*batches, strict=True)]


def _in_order(graph: EdgeGraph, sublayer: str, order: Mapping[str, float]) -> list[Writer]:
    """Least important first; ties by index."""
    writers = [writer for writer in graph.writers if writer.sublayer == sublayer]
    return sorted(writers, key=lambda writer: (order[writer.name], writer.index))


class _Search:
    """The state of one run: D_KL(G‖H) so far, and the stages behind the one at hand with their removals carried out."""

    def __init__(
        self,
        clean: Tensor,
        reference: Reference,
        limits: Limits,
        journal: Journal,
        progress: Callable[[Decision], None] | None,
    ) -> None:
        self.clean, self.reference, self.limits = clean, reference, limits
        self.journal, self.progress = journal, progress
        self.decided: list[DecidedStage] = []
        self.kl = 0.0
        self.decisions: list[Decision] = []

    def visit(self, stage: Stage, stream: Tensor, writers: list[Writer]) -> None:
        """Decides the edges of one stage's writers, then puts the stage in front of those decided."""
        removed: list[int] = []
        if writers:
            sublayer = _Sublayer(stage, stream, self.reference[stage.name])
            for writer in writers:
                if not self._decide(writer, partial(sublayer.without, removed, writer)).kept:
                    removed.extend(writer.units)
        self.decided.insert(0, decide(stage, removed, self.reference.get(stage.name)))

    def visit_embedding(self, stream: Tensor) -> None:
        """The embedding writes the very stream that the first sublayer reads."""
        ablated = self.reference[EMBED].to(stream).expand_as(stream)
        self._decide(Writer(EMBED), lambda: ((ablated[images], images) for images in _slices(len(stream))))

    def _decide(self, writer: Writer, streams: Callable[[], Iterator[tuple[Tensor, slice]]]) -> Decision:
        edge = Edge(writer)
        decision = self.journal.recall(edge)
        if decision is None:
            kl = self._kl_of(streams())
            removes = self.limits.allow(kl, self.kl)
            decision = Decision(edge, not removes, kl - self.kl, kl)
            self.journal.record(decision)
        if not decision.kept:
            self.kl = decision.kl
        self.decisions.append(decision)
        if self.progress is not None:
            self.progress(decision)
        return decision

    def _kl_of(self, streams: Iterator[tuple[Tensor, slice]]) -> float:
        total = 0.0
        for stream, images in streams:
            logits = run_decided(self.decided, stream, images)
            total += float(kl_divergence(self.clean[images], logits).sum())
        return total / len(self.clean)


class _Sublayer:
    """One sublayer of the whole model: what the stream behind it would be without some of its units."""

    def __init__(self, stage: Stage, stream: Tensor, reference: Tensor) -> None:
        self.stage, self.stream, self.reference = stage, stream, reference
        self.inner = torch.cat([stage.inner(batch) for batch in stream.split(BATCH)])

    def without(self, removed: list[int], writer: Writer) -> Iterator[tuple[Tensor, slice]]:
        """The stream behind the sublayer, batch by batch, with `removed` and the writer's units replaced."""
        assert self.stage.sublayer is not None
        units = [*removed, *writer.units]
        for images in _slices(len(self.stream)):
            reference = self.reference[images] if self.reference.dim() == 3 else self.reference
            inner = replaced(self.stage, self.inner[images], units, reference)
            yield self.stream[images] + self.stage.sublayer.out(inner), images


def _slices(count: int) -> Iterator[slice]:
    for start in range(0, count, BATCH):
        yield slice(start, min(start + BATCH, count))

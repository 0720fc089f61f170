"""The engine of the block and the head graph, where removing a writer's only edge makes everything behind it see the
writer's reference.

A trial adds the writer's reference less its value to the stream behind its sublayer, and runs what is behind: the units
that are kept there, and in the last layer only the tokens that the logits read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from passes.plan import channels_of
from vitfx.circuits.circuit import EMBED, Edge, Reader, Writer
from vitfx.circuits.edge_graph import STREAM_READER, EdgeGraph
from vitfx.discovery.basis.calibration import Calibration
from vitfx.discovery.basis.forecast import Forecast
from vitfx.discovery.basis.protocol import BATCH, Chosen, Trial, mean_kl
from vitfx.discovery.engines.decided_stages import DecidedStage, decide, run_decided
from vitfx.discovery.engines.second_order import ByAutograd, TrackedLogits, second_order
from vitfx.graph.narrow import narrow
from vitfx.graph.stages import Reference, Stage, in_batches, of_images, onto, streams_at


class HeadEngine:
    """Visits the sublayers from the output backwards, then the embedding.

    Memory, in numbers: the streams of all stages, N·T·D·(2L + 2), and one sublayer's inner channels and output.
    """

    def __init__(self, graph: EdgeGraph, calibration: Calibration, reference: Reference) -> None:
        self.graph, self.calibration = graph, calibration
        self.narrowed = narrow(graph.stages, calibration.clean)
        self.reference = self.narrowed.reference(reference)
        self.behind: list[DecidedStage] = []
        self.clean = torch.empty(0)
        self.order: tuple[int, ...] | None = None

    def visits(self) -> Iterator[StreamVisit]:
        with torch.no_grad():
            streams = self._streams()
            self.clean = behind = streams.pop()
        for index in reversed(range(self.graph.first, len(self.graph.stages))):
            stage, stream = self.narrowed.stages[index], streams.pop()
            gone: list[int] = []
            if stage.sublayer is not None:
                visit = SublayerStreamVisit(self, stage, stream, behind)
                yield visit
                gone = visit.gone
            with torch.no_grad():
                self.behind.insert(0, decide(stage, sorted(gone), self.reference.get(stage.name)))
            behind = stream
        yield EmbeddingStreamVisit(self, stream)

    def wide_visits(self) -> Iterator[WideStreamVisit]:
        return (WideStreamVisit(visit) for visit in self.visits())

    def _streams(self) -> list[Tensor]:
        """The input of each stage in the whole model, and its logits last."""
        readings = list(streams_at(self.narrowed.stages, self.calibration.clean, BATCH))
        return [*(reading.stream for reading in readings), readings[-1].behind]


class StreamVisit:
    """The writers of one sublayer, or the embedding, whose edges into the stream are decided one after another."""

    reader: Reader = STREAM_READER
    idle = False

    def __init__(self, engine: HeadEngine, sublayer: str) -> None:
        self.engine = engine
        self.writers: Sequence[Writer] = engine.graph.writers_of(sublayer)

    def change(self, writer: Writer, images: Chosen) -> Tensor:
        """What replacing the writer adds to the stream: (n, T, D)."""
        raise NotImplementedError

    def stream(self, images: Chosen) -> Tensor:
        """The stream behind the writers, without those that are removed: (n, T, D)."""
        raise NotImplementedError

    def replace(self, writers: Sequence[Writer]) -> None:
        """Puts these writers' references in their place for good."""
        raise NotImplementedError

    def remove(self, writers: Sequence[Writer], order: tuple[int, ...] | None = None) -> None:
        self.replace(writers)
        if order is not None:
            self.engine.order = order

    def stream_without(self, writers: Sequence[Writer], images: Chosen) -> Tensor:
        """The stream without these writers as well: (n, T, D)."""
        stream = self.stream(images)
        for writer in writers:
            stream = onto(stream, self.change(writer, images))
        return stream

    @torch.no_grad()
    def kl_without(self, writers: Sequence[Writer], allowed: Callable[[float], bool]) -> Trial:
        def divergence(images: Chosen) -> Tensor:
            logits = run_decided(self.engine.behind, self.stream_without(writers, images), images)
            return self.engine.calibration.divergence(self.engine.clean[images], logits)

        return mean_kl(self.engine.calibration, divergence, allowed, self.engine.order)

    def forecast(self, gone: Sequence[Writer] = ()) -> Forecast:
        """What removing each writer would cost, if `gone` were removed as well."""

        def track(stream: Tensor, images: slice) -> TrackedLogits:
            return ByAutograd(stream, lambda seen: run_decided(self.engine.behind, seen, images))

        def along(gradients: Tensor, stream: Tensor, images: slice) -> Tensor:
            changes = torch.stack([self.change(writer, images) for writer in self.writers])
            return torch.einsum("wntd,gntd->gwn", changes, gradients[..., : changes.shape[-1]])

        return second_order(
            self.engine.calibration, self.engine.clean, partial(self.stream_without, gone), track, along
        )


class WideStreamVisit:
    """A sublayer's edges into the stream, which is their only reader."""

    idle: Sequence[Edge] = ()

    def __init__(self, visit: StreamVisit) -> None:
        self._visit = visit
        self.edges: Sequence[Edge] = [Edge(writer, STREAM_READER) for writer in visit.writers]

    def kl_without(self, edges: Sequence[Edge], allowed: Callable[[float], bool]) -> Trial:
        return self._visit.kl_without(_writers(edges), allowed)

    def forecast(self, gone: Sequence[Edge] = ()) -> Forecast:
        return self._visit.forecast(_writers(gone))

    def remove(self, edges: Sequence[Edge], order: tuple[int, ...] | None = None) -> None:
        self._visit.remove(_writers(edges), order)


def _writers(edges: Sequence[Edge]) -> list[Writer]:
    return [edge.writer for edge in edges]


class SublayerStreamVisit(StreamVisit):
    """The heads or paths of one sublayer, or the sublayer as a whole."""

    def __init__(self, engine: HeadEngine, stage: Stage, stream: Tensor, behind: Tensor) -> None:
        """stream, behind: before and behind the sublayer, in the whole model."""
        super().__init__(engine, stage.name)
        self.stage, self.gone = stage, list[int]()
        self.parts: dict[Writer, tuple[Tensor, Tensor]] = {}
        self.behind = behind
        self.reference = engine.reference[stage.name]
        with torch.no_grad():
            self.inner = in_batches(stage.inner, stream, BATCH)

    def change(self, writer: Writer, images: Chosen) -> Tensor:
        missing, columns = self._part(writer)
        return missing[images] @ columns

    def _part(self, writer: Writer) -> tuple[Tensor, Tensor]:
        """The writer's reference less its value, (N, T, ·), and its columns of the projection, (·, D)."""
        if writer not in self.parts:
            assert self.stage.sublayer is not None
            module = self.stage.sublayer
            channels = channels_of(writer.units, module.channels).to(self.inner.device)
            missing = self.reference.to(self.inner)[..., channels] - self.inner[..., channels]
            self.parts[writer] = missing, module.out.weight.T[channels]
        return self.parts[writer]

    def stream(self, images: Chosen) -> Tensor:
        return self.behind[images]

    def replace(self, writers: Sequence[Writer]) -> None:
        self.gone += [unit for writer in writers for unit in writer.units]
        with torch.no_grad():
            for writer in writers:
                self.behind = onto(self.behind, self.change(writer, slice(None)))


class EmbeddingStreamVisit(StreamVisit):
    """The embedding, which is the very stream that the first sublayer reads."""

    def __init__(self, engine: HeadEngine, stream: Tensor) -> None:
        super().__init__(engine, EMBED)
        self.clean = stream

    def change(self, writer: Writer, images: Chosen) -> Tensor:
        return self._ablated(images) - self.clean[images]

    def stream(self, images: Chosen) -> Tensor:
        return self.clean[images]

    def replace(self, writers: Sequence[Writer]) -> None:
        if writers:
            self.clean = self._ablated(slice(None))

    def _ablated(self, images: Chosen) -> Tensor:
        return of_images(self.engine.reference[EMBED], images).to(self.clean).expand_as(self.clean[images])

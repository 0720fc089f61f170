"""vitfx and its peers on the same model, images and mean ablation: values, and how long each takes for them."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor
from torch.fx import GraphModule

from benchmarks.hooked import HOOKED
from benchmarks.hooked_circuits import HookedCircuits
from benchmarks.subject import Opened
from benchmarks.vit_twin import make_twin
from vitfx.circuits.circuit import Edge
from vitfx.circuits.edge_graph import EdgeGraph, Paths
from vitfx.discovery.basis.protocol import Visit
from vitfx.discovery.basis.settings import Settings
from vitfx.discovery.engines.reader_engine import ReaderEngine
from vitfx.discovery.methods.attribution import eap, eap_ig
from vitfx.discovery.methods.unit_importance import fisher_scores, group_paths
from vitfx.discovery.run import Setup, prepare
from vitfx.graph.trace import at_rest, to_canonical
from vitfx.images.image_set import Images
from vitfx.support.progress import Report
from vitfx.support.timing import Timing

VITFX = "vitfx"
LOSS = "loss"
"""The metric of attributions: it needs no counterfactual logits, of which each tool has its own notion."""
Scores = dict[str, float]
"""By the edge's name."""
T = TypeVar("T")


@dataclass
class Clock:
    """Adds up what calls take."""

    seconds: float = 0.0

    def timed(self, call: Callable[[], T]) -> T:
        begin = time.perf_counter()
        result = call()
        self.seconds += time.perf_counter() - begin
        return result


@dataclass(frozen=True)
class Tools:
    """All in one floating-point type, on the CPU."""

    graph: EdgeGraph
    setup: Setup
    peers: Mapping[str, HookedCircuits]

    def effects(self, edges: Sequence[Edge], report: Report) -> dict[str, Scores]:
        """The KL divergence that each edge costs alone, in nats an image, by the tool."""
        effects: dict[str, Scores] = {VITFX: {}, **{name: {} for name in self.peers}}
        for visit, asked in self._visits(edges):
            for edge in asked:
                effects[VITFX][edge.name] = _cost(visit, edge)
                for name, peer in self.peers.items():
                    effects[name][edge.name] = peer.effect(edge)
                report(len(effects[VITFX]), len(edges))
        return effects

    def time_effects(self, edges: Sequence[Edge], report: Report) -> tuple[dict[str, Timing], float]:
        """An edge's time by the tool, edge by edge in turns; and the seconds that vitfx takes besides, for what serves
        all edges of the graph."""
        samples: dict[str, list[float]] = {name: [] for name in (VITFX, *self.peers)}
        clock = Clock()
        for visit, asked in self._visits(edges, clock):
            for edge in asked:
                calls = {VITFX: partial(_cost, visit, edge)}
                calls |= {name: partial(peer.effect, edge) for name, peer in self.peers.items()}
                names = list(samples)
                start = len(samples[VITFX]) % len(names)
                for name in names[start:] + names[:start]:
                    own = Clock()
                    own.timed(calls[name])
                    samples[name].append(1e3 * own.seconds)
                report(len(samples[VITFX]), len(edges))
        return {name: Timing(tuple(times)) for name, times in samples.items()}, clock.seconds

    def attributions(self, steps: int) -> dict[str, Callable[[], Scores]]:
        """Of all edges, by the tool: EAP, and with more steps than one EAP-IG."""
        calibration, reference = self.setup.calibration, self.setup.reference
        own: Callable[[], Scores] = partial(eap, self.graph, calibration, reference, metric=LOSS, signed=True)
        if steps > 1:
            own = partial(eap_ig, self.graph, calibration, reference, metric=LOSS, steps=steps, signed=True)
        edges = self.graph.edges()
        return {VITFX: own, **{name: partial(peer.attributions, edges, steps) for name, peer in self.peers.items()}}

    def _visits(self, edges: Sequence[Edge], clock: Clock | None = None) -> Iterator[tuple[Visit, list[Edge]]]:
        """The engine's visits with those of the edges that they decide. Nothing is removed.

        clock: times what serves all edges of the graph, for which every visit is then set up.
        """
        own, (calibration, reference) = clock or Clock(), (self.setup.calibration, self.setup.reference)
        visits = own.timed(lambda: iter(ReaderEngine(self.graph, calibration, reference).visits()))
        while (visit := own.timed(lambda: next(visits, None))) is not None:
            asked = [edge for edge in edges if edge.reader == visit.reader]
            if asked or clock is not None:
                # The first question to a head or an MLP sets up what serves all of its edges, asked or not.
                own.timed(partial(visit.kl_without, visit.writers[:1], lambda kl: False))
            yield visit, asked


def open_tools(
    opened: Opened, settings: Settings, peers: Sequence[str], dtype: torch.dtype, paths: Paths | None = None
) -> Tools:
    """paths: the neurons' groups; without them they are found as discovery finds them, on these values.

    Raises UserError where the peers can't run the model, or one of their packages is missing.
    """
    images, module = opened.images, opened.model.module
    twin = make_twin(copy.deepcopy(module).double(), images.pixels[:2].double()).to(dtype)
    pixels = images.pixels.to(dtype)
    graph_module = to_canonical(at_rest(copy.deepcopy(module).to(dtype)), pixels[:2]).graph_module
    setup = prepare(graph_module, Images(pixels, images.labels, images.names), settings)
    if paths is None:
        scores = fisher_scores(setup.coarse.stages, setup.calibration, setup.reference)
        paths = group_paths(setup.coarse.stages, scores, settings.paths)
    calibration = setup.calibration
    labels = calibration.labels
    if labels is None:
        labels = _top_classes(graph_module, calibration.clean)
    hooked = {
        name: HookedCircuits(HOOKED[name](twin), calibration.clean, calibration.corrupted, labels) for name in peers
    }
    return Tools(EdgeGraph(graph_module, paths, settings.granularity), setup, hooked)


@torch.no_grad()
def _top_classes(graph_module: GraphModule, pixels: Tensor) -> Tensor:
    return torch.cat([graph_module(batch).argmax(dim=-1) for batch in pixels.split(32)])


def _cost(visit: Visit, edge: Edge) -> float:
    return visit.kl_without([edge.writer], lambda kl: True).kl


def paths_of_graph(graph: EdgeGraph) -> Paths:
    """The neurons' groups that a graph was made with."""
    paths: dict[str, list[tuple[int, ...]]] = {}
    for writer in graph.writers:
        if writer.sublayer.startswith("m"):
            paths.setdefault(writer.sublayer, []).append(writer.units)
    return paths

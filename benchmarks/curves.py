"""How faithful circuits of growing size are: the curves of MIB (Mueller et al. 2025, arXiv:2504.13151, section 3).

C_k is the circuit of the first int(k · N) of N edges, less those that are not connected to image and logits. With a
metric m, averaged over images, f(k) = (m(C_k) − m(∅)) / (m(whole) − m(∅)), where every edge of ∅ is ablated. Over k,
linear and by trapezoids,

    CPR = ∫ f(k) dk           of edges in the order of their signed scores: more is better
    CMD = ∫ |1 − f(k)| dk     of edges in the order of their magnitudes: less is better
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from vitfx.circuits.circuit import EMBED, Circuit, Decision, Edge
from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.circuits.view import live_edges, structurally_alive
from vitfx.discovery.basis.calibration import Calibration
from vitfx.discovery.basis.metric import Metric, make_metric
from vitfx.discovery.basis.protocol import BATCH, batches
from vitfx.graph.stages import Reference, of_images
from vitfx.support.errors import UserError
from vitfx.support.progress import Report

FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)
LOGITS, DIVERGENCE = "logit-difference", "kl"
SIGNED, MAGNITUDE = "signed", "magnitude"
ORDERS: Mapping[str, Callable[[float], float]] = {SIGNED: float, MAGNITUDE: abs}
Values = dict[str, float]
"""Each metric's mean over the images."""


@dataclass(frozen=True)
class Curve:
    """Of edges in one order, one value for each of `FRACTIONS`."""

    edges: Sequence[int]  #: taken
    connected: Sequence[int]  #: of these, those that were left
    values: Mapping[str, Sequence[float]]  #: by metric


class Evaluator:
    """Runs circuits on images, all with the same ablation.

    The metrics are the logit difference of `vitfx.discovery.basis.metric` and, negative so that more is better, the KL
    divergence from the whole model.
    """

    def __init__(self, graph: EdgeGraph, calibration: Calibration, reference: Reference) -> None:
        """calibration: the images that circuits are run on. reference: a resampling one has a value for each."""
        self.graph, self.calibration, self.reference = graph, calibration, reference
        self._known: dict[frozenset[Edge], Values] = {}
        with torch.no_grad():
            self._metrics = [(images, self._metrics_of(images)) for images in batches(len(calibration.clean), BATCH)]

    def _metrics_of(self, images: slice) -> dict[str, Metric]:
        whole = self.graph.run(self.calibration.clean[images])
        return {
            LOGITS: make_metric(LOGITS, self.graph, self.calibration, images, whole),
            DIVERGENCE: lambda logits: -self.calibration.divergence(whole, logits),
        }

    @cached_property
    def whole(self) -> Values:
        return self.values([])

    @cached_property
    def empty(self) -> Values:
        """With every edge ablated. Raises UserError where that changes nothing."""
        values = self.values(self.graph.edges())
        for name, value in values.items():
            if value == self.whole[name]:
                raise UserError(f"{name} is the same with every edge ablated: give other images, or another `ablation`")
        return values

    @torch.no_grad()
    def values(self, removed: Collection[Edge]) -> Values:
        """Of the model without these edges."""
        key = frozenset(removed)
        if key not in self._known:
            totals: Values = {}
            for images, metrics in self._metrics:
                own = {name: of_images(value, images) for name, value in self.reference.items()}
                logits = self.graph.run(self.calibration.clean[images], removed, own)
                for name, metric in metrics.items():
                    totals[name] = totals.get(name, 0.0) + float(metric(logits).sum())
            self._known[key] = {name: total / len(self.calibration.clean) for name, total in totals.items()}
        return self._known[key]

    def curve(self, scores: Mapping[str, float], order: str, progress: Report) -> Curve:
        """scores: by the edge's name. order: one of `ORDERS`. Edges that are equal stay in the order of the graph.

        On the block and the head graph the embedding comes first, whatever its score: no other edge is connected
        without it.
        """
        edges, first = self.graph.edges(), EMBED if self.graph.reads_stream else None
        ranked = sorted(edges, key=lambda edge: (edge.writer.sublayer != first, -ORDERS[order](scores[edge.name])))
        counts = [int(fraction * len(edges)) for fraction in FRACTIONS]
        kept = []
        values: list[Values] = []
        for done, count in enumerate(counts, 1):
            circuit = connected(self.graph, ranked[:count])
            kept.append(len(circuit))
            values.append(self.values([edge for edge in edges if edge not in circuit]))
            progress(done, len(counts))
        return Curve(counts, kept, {name: [value[name] for value in values] for name in self.whole})

    def measure(self, scores: Mapping[str, float], progress: Report) -> dict[str, Any]:
        """Both curves and, by metric, their areas; ready for JSON."""
        curves = {order: self.curve(scores, order, progress) for order in ORDERS}
        return {
            "whole": self.whole,
            "empty": self.empty,
            **{order: asdict(curve) for order, curve in curves.items()},
            "areas": {name: self._areas(name, curves) for name in self.whole},
        }

    def _areas(self, name: str, curves: Mapping[str, Curve]) -> dict[str, float]:
        whole, empty = self.whole[name], self.empty[name]
        signed, by_magnitude = (faithfulness(curves[order].values[name], whole, empty) for order in ORDERS)
        return {"CPR": area(signed), "CMD": area([abs(1 - value) for value in by_magnitude])}


def connected(graph: EdgeGraph, kept: Collection[Edge]) -> frozenset[Edge]:
    """Those of the kept edges that are on a way from the image to the logits through kept edges."""
    chosen = frozenset(kept)
    circuit = Circuit(tuple(Decision(edge, edge in chosen, 0.0, None) for edge in graph.edges()), 0.0)
    return frozenset(decision.edge for decision in live_edges(circuit, structurally_alive(circuit)))


def faithfulness(values: Sequence[float], whole: float, empty: float) -> list[float]:
    """f for each value of the metric."""
    return [(value - empty) / (whole - empty) for value in values]


def area(values: Sequence[float]) -> float:
    """Under values at `FRACTIONS`, from the first to the last."""
    return float(np.trapezoid(values, FRACTIONS))

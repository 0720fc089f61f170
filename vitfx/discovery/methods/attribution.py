"""The methods that score all edges at once, by their names."""

from __future__ import annotations

from collections.abc import Callable

from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.discovery.basis.calibration import Calibration
from vitfx.discovery.basis.settings import Settings
from vitfx.discovery.methods.magnitude import magnitude
from vitfx.eap import eap
from vitfx.eap_ig import eap_ig
from vitfx.graph.stages import Reference
from vitfx.random_scores import random_scores
from vitfx.support.progress import Report
from vitfx.taylor import taylor


def score_edges(
    graph: EdgeGraph, calibration: Calibration, reference: Reference, settings: Settings, report: Report
) -> dict[str, float]:
    """Every edge's score by `settings.method`, one of `RANKING`, by the edge's name."""
    methods: dict[str, Callable[[], dict[str, float]]] = {
        "eap": lambda: eap(graph, calibration, reference, metric=settings.metric, progress=report),
        "eap-ig": lambda: eap_ig(
            graph, calibration, reference, metric=settings.metric, steps=settings.steps, progress=report
        ),
        "taylor": lambda: taylor(graph, calibration, progress=report),
        "magnitude": lambda: magnitude(graph),
        "random": lambda: random_scores(graph, settings.seed),
    }
    return methods[settings.method]()

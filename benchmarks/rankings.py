"""Every edge's rank by a method of discovery, whether the method scores edges or decides about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

from benchmarks.subject import Subject
from benchmarks.thresholds import decide
from vitfx.circuits.circuit import Decision
from vitfx.discovery.basis.settings import DIFFERENTIATING, METRICS, RANKING, Settings
from vitfx.discovery.methods.attribution import score_edges
from vitfx.support.errors import UserError
from vitfx.support.progress import Report

Decide = Callable[[float], Sequence[Decision]]
"""A run at one τ."""
THRESHOLDS = ("acdc", "eap-acdc")
"""Methods that decide at a threshold τ, and rank edges by several of them."""
RANKED = (*RANKING, *THRESHOLDS)


def read_method(text: str, settings: Settings) -> Settings:
    """Of a method by its name in `RANKED`, or by name and metric: "eap", "eap:loss". Raises UserError."""
    method, _, metric = text.partition(":")
    if method not in RANKED:
        raise UserError(f"method {text} can't be ranked: choose from {', '.join(RANKED)}")
    if metric and method not in DIFFERENTIATING:
        raise UserError(f"method {text} names a metric, which {method} does not take: leave it out")
    if metric and metric not in METRICS:
        raise UserError(f"metric {metric} of {text} is not known: choose one of {', '.join(METRICS)}")
    return replace(settings, method=method, metric=metric or settings.metric)


def rank_edges(subject: Subject, settings: Settings, taus: Sequence[float], report: Report) -> dict[str, float]:
    """A score for every edge, by its name: the higher, the longer the edge stays in the circuit.

    Scores of methods that have signs keep them: positive where removing the edge makes the metric worse.
    taus: at which methods run that decide at a threshold, see `by_thresholds`.
    """
    setup = subject.setup
    if settings.method in RANKING:
        return score_edges(subject.graph, setup.calibration, setup.reference, settings, report, signed=True)
    order = subject.order() if settings.method == "acdc" else None
    total, done = len(taus) * len(subject.graph.edges()), 0

    def progress(decision: Decision) -> None:
        nonlocal done
        done += 1
        report(done, total)

    return by_thresholds(partial(decide, subject, order, seed=settings.seed, progress=progress), taus)


def by_thresholds(run: Decide, taus: Sequence[float]) -> dict[str, float]:
    """Ranks edges by the greatest of some thresholds at which they are kept, as ROC curves of ACDC do (Conmy et al.
    2023, section 4), and those alike by what their removal cost.

    That cost is measured at the smallest threshold that removes the edge and all greater ones; of edges that the
    greatest keeps, it is at least as much as their trial had measured when it was broken off. Scores are places from
    the least important on, from 0; equal edges have equal places.
    """
    runs = [{decision.edge.name: decision for decision in run(tau)} for tau in sorted(taus)]
    keys = {name: _key([decisions[name] for decisions in runs]) for name in runs[0]}
    places = {key: float(place) for place, key in enumerate(sorted(set(keys.values())))}
    return {name: places[key] for name, key in keys.items()}


def _key(decisions: Sequence[Decision]) -> tuple[int, float]:
    """How many thresholds do not exceed the greatest that kept the edge, and what its removal cost."""
    level = max((place for place, decision in enumerate(decisions, 1) if decision.kept), default=0)
    return level, decisions[min(level, len(decisions) - 1)].score

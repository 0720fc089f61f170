"""Every edge's rank by a method of discovery, whether the method scores edges or decides about them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from benchmarks.subject import Subject
from benchmarks.thresholds import decide
from vitfx.circuits.circuit import Decision
from vitfx.discovery.basis.settings import DIFFERENTIATING, EDGE_PRUNING, METRICS, RANKING, Settings
from vitfx.discovery.methods.attribution import score_edges
from vitfx.discovery.run import learn
from vitfx.support.errors import UserError
from vitfx.support.progress import Watcher

Run = dict[str, tuple[bool, float]]
"""At one τ: for each edge, by its name, whether it was kept, and what its removal cost."""
THRESHOLDS = ("acdc", "eap-acdc")
"""Methods that decide at a threshold τ, and rank edges by several of them."""
RANKED = (*RANKING, *THRESHOLDS, EDGE_PRUNING)
SHARE = 0.9
"""That edge pruning learns to remove: it ranks edges by how long their gates stay open on the way there."""


def read_method(text: str, settings: Settings) -> Settings:
    """Of a method by its name in `RANKED`, or by name and metric: "eap", "eap:loss". Raises UserError."""
    method, _, metric = text.partition(":")
    if method not in RANKED:
        raise UserError(f"method {text} can't be ranked: choose from {', '.join(RANKED)}")
    if metric and method not in DIFFERENTIATING:
        raise UserError(f"method {text} names a metric, which {method} does not take: leave it out")
    if metric and metric not in METRICS:
        raise UserError(f"metric {metric} of {text} is not known: choose one of {', '.join(METRICS)}")
    share = SHARE if method == EDGE_PRUNING else None
    return replace(settings, method=method, metric=metric or settings.metric, remove=share)


def rank_edges(
    subject: Subject,
    settings: Settings,
    taus: Sequence[float],
    watcher: Watcher,
    runs: dict[str, Run] | None = None,
    remember: Callable[[], None] = lambda: None,
) -> dict[str, float]:
    """A score for every edge, by its name: the higher, the longer the edge stays in the circuit.

    Scores of methods that have signs keep them: positive where removing the edge makes the metric worse.
    taus: at which methods run that decide at a threshold, see `by_thresholds`.
    runs: by τ, those of an interrupted call, which are not repeated; new ones are added. remember: called after each.
    """
    setup, report = subject.setup, watcher.bar(settings.method)
    if settings.method == EDGE_PRUNING:
        learned = learn(subject.graph_module, subject.graph, setup.calibration, setup.reference, settings, watcher)
        return {decision.edge.name: float(place) for place, decision in enumerate(learned)}
    if settings.method in RANKING:
        return score_edges(subject.graph, setup.calibration, setup.reference, settings, report, signed=True)
    order = subject.order() if settings.method == "acdc" else None
    known = {} if runs is None else runs
    edges = len(subject.graph.edges())
    done = edges * len(known)

    def progress(decision: Decision) -> None:
        nonlocal done
        done += 1
        report(done, edges * len(taus))

    def run(tau: float) -> Run:
        if str(tau) not in known:
            decisions = decide(subject, order, tau, settings.seed, progress)
            known[str(tau)] = {decision.edge.name: (decision.kept, decision.score) for decision in decisions}
            remember()
        return known[str(tau)]

    return by_thresholds(run, taus)


def by_thresholds(run: Callable[[float], Run], taus: Sequence[float]) -> dict[str, float]:
    """Ranks edges by the greatest of some thresholds at which they are kept, as ROC curves of ACDC do (Conmy et al.
    2023, section 4), and those alike by what their removal cost.

    That cost is measured at the smallest threshold that removes the edge and all greater ones; of edges that the
    greatest keeps, it is at least as much as their trial had measured when it was broken off. Scores are places from
    the least important on, from 0; equal edges have equal places.
    """
    runs = [run(tau) for tau in sorted(taus)]
    keys = {name: _key([verdicts[name] for verdicts in runs]) for name in runs[0]}
    places = {key: float(place) for place, key in enumerate(sorted(set(keys.values())))}
    return {name: places[key] for name, key in keys.items()}


def _key(verdicts: Sequence[tuple[bool, float]]) -> tuple[int, float]:
    """How many thresholds do not exceed the greatest that kept the edge, and what its removal cost."""
    level = max((place for place, (kept, _) in enumerate(verdicts, 1) if kept), default=0)
    return level, verdicts[min(level, len(verdicts) - 1)][1]

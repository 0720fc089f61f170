"""What a sample of edges says: seconds, ratios, forward-pass equivalents, equal decisions."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from statistics import fmean
from typing import Any

import numpy as np

from benchmarks.sampling import Sample, Walk, stratum


def wilson(agreeing: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """The 95 % confidence interval of a share (Wilson 1927)."""
    share, spread = agreeing / count, z * z / count
    middle = (share + spread / 2) / (1 + spread)
    half = z * math.sqrt(share * (1 - share) / count + spread / (4 * count)) / (1 + spread)
    return max(0.0, middle - half), min(1.0, middle + half)


def shares(pairs: Sequence[tuple[bool, bool]]) -> dict[str, Any] | None:
    """Of pairs of decisions (ours, the naive loop's); None where there are none."""
    if not pairs:
        return None
    agreeing = sum(ours == theirs for ours, theirs in pairs)
    low, high = wilson(agreeing, len(pairs))
    return {"edges": len(pairs), "agreeing": agreeing, "share": agreeing / len(pairs), "low": low, "high": high}


def agreement(samples: Sequence[Sample]) -> dict[str, Any]:
    """The decisions under test against the naive loop's at the same state: in all, and by what they rest on."""

    def of(chosen: Callable[[Sample], bool]) -> dict[str, Any] | None:
        return shares([(one.decision.kept, one.naive.kept) for one in samples if chosen(one)])

    found = {"all": of(lambda one: True), "idle": of(lambda one: one.idle), "asked": of(lambda one: not one.idle)}
    for basis in sorted({one.decision.basis for one in samples}):
        found[basis] = of(lambda one, basis=basis: not one.idle and one.decision.basis == basis)  # type: ignore[misc]
    found["kept"] = of(lambda one: one.decision.kept)
    found["removed"] = of(lambda one: not one.decision.kept)
    return {name: one for name, one in found.items() if one is not None}


def engine_agreement(samples: Sequence[Sample]) -> dict[str, Any] | None:
    """The engine's answers to single edges against the naive loop's."""
    asked = [(one.engine, one.naive) for one in samples if one.engine is not None]
    if not asked:
        return None
    known = [(ours, ours.kl, theirs.kl) for ours, theirs in asked]
    exact = [abs(kl - naive) for ours, kl, naive in known if ours.exact and kl is not None and naive is not None]
    return {
        "all": shares([(ours.kept, theirs.kept) for ours, theirs in asked]),
        "exact": len(exact),
        "max_kl_difference": max(exact, default=None),
    }


def spread(values: Iterable[float]) -> dict[str, float] | None:
    found = list(values)
    if not found:
        return None
    low, middle, high = (float(one) for one in np.percentile(found, [10, 50, 90]))
    return {"median": middle, "p10": low, "p90": high, "mean": fmean(found), "samples": len(found)}


def times(samples: Sequence[Sample]) -> dict[str, Any]:
    """Seconds an edge and their ratios. Idle edges, which the engine is not asked about, count as nothing there."""
    plain = [one.plain_seconds for one in samples]
    naive = [one.naive.seconds for one in samples if one.naive.seconds is not None]
    pairs = [
        (one.engine.seconds, one.naive.seconds)
        for one in samples
        if one.engine is not None and one.engine.seconds and one.naive.seconds
    ]
    engine = spread(one.engine.seconds for one in samples if one.engine is not None and one.engine.seconds is not None)
    unit = float(np.median(plain))
    paired = spread(theirs / ours for ours, theirs in pairs)
    found = {"plain_forward": spread(plain), "naive": spread(naive), "engine": engine, "paired_ratio": paired}
    found["ratio_of_medians"] = (
        {"value": float(np.median(naive)) / engine["median"]} if engine is not None and engine["median"] > 0 else None
    )
    medians = {"naive": float(np.median(naive)) / unit}
    if engine is not None:
        medians["engine"] = engine["median"] / unit
    return {**found, "forward_pass_equivalents": medians}


def extrapolate(walked: Walk, removed: int) -> float:
    """Seconds of the exact method over all edges: mean seconds of a sublayer's sampled trials times its edges, mean
    seconds of a removal times the edges removed, and the engine's own seconds between the readers, which were measured.

    A sublayer without a sample takes the next one's that was visited, or the last one's.
    """
    trials: dict[str, list[float]] = {}
    for sample in walked.samples:
        seconds = sample.engine.seconds if sample.engine is not None else None
        trials.setdefault(stratum(sample.decision.edge), []).append(seconds or 0.0)
    visited = list(walked.edges)
    total = walked.visit_seconds
    for at, name in enumerate(visited):
        nearest = next(one for one in [*visited[at:], *reversed(visited[:at])] if one in trials)
        total += fmean(trials[nearest]) * walked.edges[name]
    removals = [one.remove_seconds for one in walked.samples if one.remove_seconds is not None]
    return total + (fmean(removals) if removals else 0.0) * removed

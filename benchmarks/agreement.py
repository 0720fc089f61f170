"""What a sample of edges shows: seconds, ratios, forward-pass equivalents, equal decisions."""

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
    """How often pairs of decisions (ours, the naive loop's) are equal; None where there are none."""
    if not pairs:
        return None
    agreeing = sum(ours == theirs for ours, theirs in pairs)
    low, high = wilson(agreeing, len(pairs))
    return {"edges": len(pairs), "agreeing": agreeing, "share": agreeing / len(pairs), "low": low, "high": high}


def agreement(samples: Sequence[Sample]) -> dict[str, Any]:
    """The decisions under test against the naive loop's in the same state: overall, and by what they rest on."""

    def of(chosen: Callable[[Sample], bool]) -> dict[str, Any] | None:
        return shares([(sample.decision.kept, sample.naive.kept) for sample in samples if chosen(sample)])

    def on(basis: str) -> dict[str, Any] | None:
        return of(lambda sample: not sample.idle and sample.decision.basis == basis)

    groups = {
        "all": of(lambda sample: True),
        "idle": of(lambda sample: sample.idle),
        "asked": of(lambda sample: not sample.idle),
        **{basis: on(basis) for basis in sorted({sample.decision.basis for sample in samples})},
        "kept": of(lambda sample: sample.decision.kept),
        "removed": of(lambda sample: not sample.decision.kept),
    }
    return {name: group for name, group in groups.items() if group is not None}


def engine_agreement(samples: Sequence[Sample]) -> dict[str, Any] | None:
    """The engine's answers to single edges against the naive loop's."""
    asked = [(sample.engine, sample.naive) for sample in samples if sample.engine is not None]
    if not asked:
        return None
    exact = [
        abs(ours.kl - theirs.kl)
        for ours, theirs in asked
        if ours.exact and ours.kl is not None and theirs.kl is not None
    ]
    return {
        "all": shares([(ours.kept, theirs.kept) for ours, theirs in asked]),
        "exact": len(exact),
        "max_kl_difference": max(exact, default=None),
    }


def spread(values: Iterable[float]) -> dict[str, float] | None:
    numbers = list(values)
    if not numbers:
        return None
    low, middle, high = (float(value) for value in np.percentile(numbers, [10, 50, 90]))
    return {"median": middle, "p10": low, "p90": high, "mean": fmean(numbers), "samples": len(numbers)}


def times(samples: Sequence[Sample]) -> dict[str, Any]:
    """Seconds an edge, and their ratios. Idle edges, which the engine is not asked about, do not count for it."""
    plain = [sample.plain_seconds for sample in samples]
    naive = [sample.naive.seconds for sample in samples if sample.naive.seconds is not None]
    asked = [(sample.engine.seconds, sample.naive.seconds) for sample in samples if sample.engine is not None]
    pairs = [(ours, theirs) for ours, theirs in asked if ours and theirs]
    engine = spread(ours for ours, _ in asked if ours is not None)
    unit = float(np.median(plain))
    paired = spread(theirs / ours for ours, theirs in pairs)
    ratio = {"value": float(np.median(naive)) / engine["median"]} if engine is not None and engine["median"] else None
    medians = {"naive": float(np.median(naive)) / unit}
    if engine is not None:
        medians["engine"] = engine["median"] / unit
    return {
        "plain_forward": spread(plain),
        "naive": spread(naive),
        "engine": engine,
        "paired_ratio": paired,
        "ratio_of_medians": ratio,
        "forward_pass_equivalents": medians,
    }


def extrapolate(walked: Walk, removed: int) -> float:
    """Seconds of the exact method over all edges: each sublayer's mean trial times its edges, the mean removal times
    the removed edges, and the engine's own measured seconds between the readers.

    A sublayer without a sample takes the trials of the next one visited that has some, or of the last.
    """
    trials: dict[str, list[float]] = {}
    for sample in walked.samples:
        seconds = sample.engine.seconds if sample.engine is not None else None
        trials.setdefault(stratum(sample.decision.edge), []).append(seconds or 0.0)
    visited = list(walked.edges)
    total = walked.visit_seconds
    for at, name in enumerate(visited):
        nearest = next(other for other in [*visited[at:], *reversed(visited[:at])] if other in trials)
        total += fmean(trials[nearest]) * walked.edges[name]
    removals = [sample.remove_seconds for sample in walked.samples if sample.remove_seconds is not None]
    return total + (fmean(removals) if removals else 0.0) * removed

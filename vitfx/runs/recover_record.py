"""report.json of `vitfx.recover`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

from vitfx.recovery.data import RecoverData
from vitfx.recovery.retrain import Recovered
from vitfx.reports.records import CourseRecord, RecoverReport
from vitfx.runs.recover_measure import Measured

_POINTS = 200


def make_report(
    command: str,
    settings: Mapping[str, Any],
    found: Recovered,
    again: Recovered | None,
    measured: Measured,
    data: RecoverData,
    environment: Mapping[str, Any],
) -> RecoverReport:
    """report.json. again: the unpruned model's own retraining, None where there was none."""
    scores = measured.runtimes[0].scores[measured.names[0]]
    return {
        "made_by": command,
        "models": measured.to_json(),
        "recovery": _course(found),
        "baseline_recovery": None if again is None else _course(again),
        "won_back": won_back(measured),
        "images": {
            "training": len(data.train),
            "held_out": len(data.held_out),
            "labelled": data.labelled,
            "evaluation": scores.images,
            "skipped": data.train.skipped + scores.skipped,
        },
        "settings": dict(settings),
        "environment": dict(environment),
    }


def _course(found: Recovered) -> CourseRecord:
    record = {**found.to_json(), "losses": _thinned(found.losses), "sentence": sentence(found)}
    return cast(CourseRecord, record)


def won_back(measured: Measured) -> float | None:
    """The share of the accuracy that pruning cost which is there again; None without labels or without a loss."""
    scores = measured.runtimes[0].scores
    whole, before = scores["baseline"].accuracy, scores["pruned"].accuracy
    after = scores["pruned retrained"].accuracy
    if whole is None or before is None or after is None or whole <= before:
        return None
    return (after - before) / (whole - before)


def sentence(found: Recovered) -> str:
    """What was kept, and whether it is better than what was given."""
    first, best = found.checks[0], found.checks[found.best]
    if found.best == 0:
        return (
            "no look was nearer to what is taught, with no fewer images right, than the one before the first step "
            f"({first}): the model is as it was"
        )
    return (
        f"of {len(found.checks)} looks the one nearest to what is taught is kept, after {best.images:,} images: "
        f"{best}; before: {first}"
    )


def _thinned(losses: Sequence[float]) -> list[float]:
    """Means of so many stretches of steps at most."""
    count = min(_POINTS, len(losses))
    edges = [round(place * len(losses) / count) for place in range(count + 1)] if count else [0]
    return [sum(losses[a:b]) / (b - a) for a, b in pairwise(edges)]

"""What runs have reached over the time that it takes: pictures of accuracy and of KL, and the table of all models."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from vitfx.reports.charts import Curve, plane
from vitfx.reports.page import figure, section, table
from vitfx.reports.points import KNEE_RULE, Reached

Named = Sequence[tuple[str, Sequence[Reached]]]
"""Runs: names and points."""

_HEAD = (
    "run", "", "model", "top-1", "agreement", "KL", "parameters left", "FLOPs left", "time left", "faster", "on",
)  # fmt: skip


def tradeoff(runs: Named, title: str) -> str:
    """What is answered right over the time that it takes: top-1 where all runs have it, else agreement."""
    if all(one.accuracy is not None for _, found in runs for one in found):
        return _over_time(runs, title, lambda one: 100 * (one.accuracy or 0.0), "top-1", "%", "up")
    return _over_time(runs, title, lambda one: 100 * one.agreement, "agreement with the original", "%", "up")


def divergence(runs: Named, title: str) -> str:
    """KL from the original over time."""
    return _over_time(runs, title, lambda one: one.kl, "KL from the original", "nats an image", "down")


def _over_time(runs: Named, title: str, value: Callable[[Reached], float], what: str, unit: str, better: str) -> str:
    """One run's points are named in the picture; those of several have the table's numbers."""
    if not any(found for _, found in runs):
        return ""
    several = len(runs) > 1
    curves, number = [], 0
    for place, (name, found) in enumerate(runs, 1):
        labels = _numbers(found, number + 1) if several else [_name(one) for one in found]
        number += len(found)
        points = [(one.time, value(one)) for one in found]
        titles = [f"{name}: {_name(one)}" for one in found]
        knee = next((index for index, one in enumerate(found) if one.knee), None)
        curves.append(Curve(name, points, all(one.joined for one in found), knee, labels, titles, place))
    said = "; ".join(
        f"{told} {x:.3g} of the time, {y:.4g} {unit}"
        for one in curves
        for told, (x, y) in zip(one.titles, one.points, strict=True)
    )
    picture = plane(
        curves, "time, as a share of the run's own baseline", f"{what}, {unit}", f"{what} over time: {said}.",
        legend=several, most=100 if unit == "%" else math.inf,
    )  # fmt: skip
    where = "; ".join(sorted({one.where for _, found in runs for one in found}))
    caption = (
        f"Left is faster, {better} is better. Each model was timed in turns with the baseline of its own run ({where})."
    )
    if any(one.marked is not None for one in curves):
        caption += f" Ringed: the knee of a sweep, {KNEE_RULE}."
    return section(title, figure(picture, caption))


def _numbers(found: Sequence[Reached], first: int) -> list[str]:
    """Of a row of models only its ends and its knee are told, so that many rows can be read."""
    ends = (0, len(found) - 1)
    return [
        str(number) if not one.joined or one.knee or index in ends else ""
        for index, (number, one) in enumerate(enumerate(found, first))
    ]


def _name(point: Reached) -> str:
    return f"{point.name}, the knee" if point.knee else point.name


def points_table(runs: Named, title: str) -> str:
    """All models of all runs, numbered as in the pictures."""
    named = [(name, one) for name, found in runs for one in found]
    rows = [
        [
            name,
            str(number),
            _name(one),
            "–" if one.accuracy is None else f"{one.accuracy:.2%}",
            f"{one.agreement:.2%}",
            f"{one.kl:.4f}",
            f"{one.params:.3f}",
            f"{one.flops:.3f}",
            f"{one.time:.3f}",
            f"{1 / one.time:.2f}×",
            one.where,
        ]
        for number, (name, one) in enumerate(named, 1)
    ]
    return section(title, table(_HEAD, rows, "Times are shares of each run's own baseline, measured beside it"))

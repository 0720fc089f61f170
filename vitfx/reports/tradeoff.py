"""What runs have reached over the time that it takes: pictures of accuracy and of KL, and the table of all models."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from markupsafe import Markup

from vitfx.reports.charts import Curve, plane
from vitfx.reports.page import figure, section, table
from vitfx.reports.points import KNEE_RULE, ModelPoint
from vitfx.support.tables import Table
from vitfx.support.text import percent

Named = Sequence[tuple[str, Sequence[ModelPoint]]]
"""Runs: names and points."""

_COLUMNS = (
    "run", "no.", "model", "top-1", "agreement", "KL", "parameters left", "FLOPs left", "time left", "faster", "on",
)  # fmt: skip


def tradeoff(runs: Named, title: str) -> Markup:
    """What is answered right over the time that it takes: top-1 where all runs have it, else agreement."""
    every = [point for _, points in runs for point in points]
    if all(point.accuracy is not None for point in every):
        metric = _shared([point.words.metric for point in every], "score")
        return _over_time(runs, title, lambda point: 100 * (point.accuracy or 0.0), metric, "%", "up")
    if any(point.agreement is None for point in every):
        return Markup("")
    return _over_time(
        runs, title, lambda point: 100 * (point.agreement or 0.0), "agreement with the original", "%", "up"
    )


def divergence(runs: Named, title: str) -> Markup:
    """KL from the original over time, or the divergence of another kind of answers."""
    words = [point.words for _, points in runs for point in points]
    name = _shared([each.divergence for each in words], "divergence")
    unit = _shared([each.an_image for each in words], "of its kind")
    return _over_time(runs, title, lambda point: point.kl, f"{name} from the original", unit, "down")


def _shared(names: Sequence[str | None], other: str) -> str:
    """The name that all have, or another for all of them."""
    return names[0] or other if len(set(names)) == 1 else other


def _over_time(
    runs: Named, title: str, value: Callable[[ModelPoint], float], quantity: str, unit: str, better: str
) -> Markup:
    """The points of one run are named in the picture; those of several have the table's numbers."""
    if not any(points for _, points in runs):
        return Markup("")
    several = len(runs) > 1
    curves, number = [], 0
    for series, (name, points) in enumerate(runs, 1):
        labels = _numbers(points, number + 1) if several else [_name(point) for point in points]
        number += len(points)
        places = [(point.time, value(point)) for point in points]
        titles = [f"{name}: {_name(point)}" for point in points]
        knee = next((index for index, point in enumerate(points) if point.knee), None)
        curves.append(Curve(name, places, all(point.joined for point in points), knee, labels, titles, series))
    listed = "; ".join(
        f"{title} {x:.3g} of the time, {y:.4g} {unit}"
        for curve in curves
        for title, (x, y) in zip(curve.titles, curve.points, strict=True)
    )
    picture = plane(
        curves, "time, as a share of the run's own baseline", f"{quantity}, {unit}", f"{quantity} over time: {listed}.",
        legend=several, most=100 if unit == "%" else math.inf,
    )  # fmt: skip
    where = "; ".join(sorted({point.where for _, points in runs for point in points}))
    caption = (
        f"Left is faster, {better} is better. Each model was timed in turns with the baseline of its own run ({where})."
    )
    if any(curve.marked is not None for curve in curves):
        caption += f" Ringed: the knee of a sweep, {KNEE_RULE}."
    return section(title, figure(picture, caption))


def _numbers(points: Sequence[ModelPoint], first: int) -> list[str]:
    """Of a row of models only its ends and its knee are labelled, so that many rows can be read."""
    ends = (0, len(points) - 1)
    return [
        str(first + index) if not point.joined or point.knee or index in ends else ""
        for index, point in enumerate(points)
    ]


def _name(point: ModelPoint) -> str:
    return f"{point.name}, the knee" if point.knee else point.name


def points_table(runs: Named, title: str) -> Markup:
    """All models of all runs, numbered as in the pictures."""
    named = [(name, point) for name, points in runs for point in points]
    rows = [
        [
            name,
            str(number),
            _name(point),
            percent(point.accuracy),
            percent(point.agreement),
            f"{point.kl:.4f}",
            f"{point.params:.3f}",
            f"{point.flops:.3f}",
            f"{point.time:.3f}",
            f"{1 / point.time:.2f}×",
            point.where,
        ]
        for number, (name, point) in enumerate(named, 1)
    ]
    caption = "Times are shares of each run's own baseline, timed beside it"
    metric = _shared([point.words.metric for _, point in named], "score")
    measure = _shared([point.words.divergence for _, point in named], "divergence")
    columns = [{"top-1": metric, "KL": measure}.get(column, column) for column in _COLUMNS]
    return section(title, table(Table(columns, rows, caption=caption, left=(0, 2, len(columns) - 1)), sorts=True))

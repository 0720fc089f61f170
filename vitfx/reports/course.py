"""The sections of a report's page on the course of a retraining, from the record of a run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from vitfx.reports.charts import Curve, plane
from vitfx.reports.flow_grid import flow_grid
from vitfx.reports.page import figure, section

_ACROSS = "images seen"


@dataclass(frozen=True)
class _Course:
    """series: which colour its curves have."""

    name: str
    series: int
    record: Mapping[str, Any]


@dataclass(frozen=True)
class _Figure:
    """What looks are told by. key: in the record of a look, times `factor`. most: what no value can pass."""

    what: str
    key: str
    factor: float = 1.0
    unit: str = "nats"
    most: float = math.inf


def curves(report: Mapping[str, Any], title: str) -> str:
    """The looks at held-out images, and the loss of steps."""
    courses = list(_courses(report))
    looks = [figure(_looks(one, own), "Ringed: what was kept.") for one, own in _figures(report, courses)]
    return section(title, *looks, figure(_losses(courses), ""))


def gradient_flow(report: Mapping[str, Any], title: str) -> str:
    """How large the gradients were that reached each layer; nothing of runs that did not record it."""
    told = (
        "Layers upwards, from the image to the logits; at the step behind each look at held-out images, before "
        "clipping. The fuller, the greater; logarithmic, from the smallest to the greatest of the picture."
    )
    flows = [(one.name.capitalize(), one.record.get("gradient_flow")) for one in reversed(list(_courses(report)))]
    return section(title, *(figure(flow_grid(flow, name), f"{name}. {told}") for name, flow in flows if flow))


def _courses(report: Mapping[str, Any]) -> Iterator[_Course]:
    for series, (key, name) in enumerate((("baseline_recovery", "baseline"), ("recovery", "pruned"))):
        if report[key] is not None:
            yield _Course(name, series, report[key])


def _figures(report: Mapping[str, Any], courses: list[_Course]) -> Iterator[tuple[_Figure, list[_Course]]]:
    """What is worth a picture, and of which courses: accuracy, and the parts of what decided on what was kept."""
    labelled = report["images"]["labelled"]
    if labelled:
        yield _Figure("held-out top-1, %", "accuracy", 100, "%", 100), courses
    else:
        yield _Figure("held-out agreement with the teacher, %", "agreement", 100, "%", 100), courses
    if report["settings"]["loss"] != "ce":
        yield _Figure("held-out KL from the teacher, nats", "kl"), [one for one in courses if one.name == "pruned"]
    if labelled:
        yield _Figure("held-out loss, nats", "loss"), courses


def _looks(one: _Figure, courses: list[_Course]) -> str:
    drawn, kept = [], []
    for course in courses:
        checks, best = course.record["checks"], course.record["best"]
        points = [(check["images"], one.factor * check[one.key]) for check in checks]
        titles = [f"{value:.4g} {one.unit}" for _, value in points]
        drawn.append(Curve(course.name, points, True, best, (), titles, course.series))
        kept.append(f"{course.name} {titles[best]}")
    return plane(drawn, _ACROSS, one.what, f"{one.what} over the images seen. Kept: {'; '.join(kept)}.", most=one.most)


def _losses(courses: list[_Course]) -> str:
    drawn = []
    for course in courses:
        losses = course.record["losses"]
        width = course.record["checks"][-1]["images"] / max(len(losses), 1)
        points = [((place + 0.5) * width, loss) for place, loss in enumerate(losses)]
        drawn.append(Curve(course.name, points, True, None, series=course.series))
    return plane(drawn, _ACROSS, "training loss", "Training loss over the images seen.")

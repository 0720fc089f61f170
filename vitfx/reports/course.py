"""The sections of a report's page on the course of a retraining."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from vitfx.graph.kinds import words_of
from vitfx.reports.charts import Curve, plane
from vitfx.reports.flow_grid import flow_grid
from vitfx.reports.page import figure, section
from vitfx.reports.records import CheckRecord, CourseRecord, RecoverReport

_ACROSS = "images seen"


@dataclass(frozen=True)
class _Course:
    name: str
    series: int  #: which colour its curves have
    record: CourseRecord


@dataclass(frozen=True)
class _Score:
    """What looks at held-out images are judged by."""

    name: str
    key: Literal["accuracy", "agreement", "kl", "loss"]  #: in the record of a look
    factor: float = 1.0
    unit: str = "nats"
    most: float = math.inf  #: what no value can exceed

    def of(self, check: CheckRecord) -> float:
        return self.factor * (check[self.key] or 0.0)


def curves(report: RecoverReport, title: str) -> Markup:
    """The looks at held-out images, and the loss of steps."""
    courses = list(_courses(report))
    looks = [figure(_looks(score, judged), "Ringed: what was kept.") for score, judged in _scores(report, courses)]
    return section(title, *looks, figure(_losses(courses), ""))


def gradient_flow(report: RecoverReport, title: str) -> Markup:
    """How large the gradients were that reached each layer."""
    caption = (
        "Layers upwards, from the image to the logits; at the step after each look at held-out images, before "
        "clipping. The fuller, the greater; logarithmic, from the smallest to the greatest of the picture."
    )
    flows = [(course.name.capitalize(), course.record["gradient_flow"]) for course in reversed(list(_courses(report)))]
    return section(title, *(figure(flow_grid(flow, name), f"{name}. {caption}") for name, flow in flows))


def _courses(report: RecoverReport) -> Iterator[_Course]:
    if report["baseline_recovery"] is not None:
        yield _Course("baseline", 0, report["baseline_recovery"])
    yield _Course("pruned", 1, report["recovery"])


def _scores(report: RecoverReport, courses: list[_Course]) -> Iterator[tuple[_Score, list[_Course]]]:
    """What is worth a picture, and of which courses: accuracy, and the parts of what decided on what was kept."""
    words, first = words_of(report["settings"]), courses[-1].record["checks"][0]
    if first["accuracy"] is not None:
        yield _Score(f"held-out {words.metric}, %", "accuracy", 100, "%", 100), courses
    elif first["agreement"] is not None:
        yield _Score("held-out agreement with the teacher, %", "agreement", 100, "%", 100), courses
    if report["settings"]["loss"] != "ce":
        name = ", ".join(filter(None, (f"held-out {words.divergence} from the teacher", words.unit)))
        yield _Score(name, "kl", unit=words.unit), courses[-1:]
    if first["loss"] is not None:
        yield _Score("held-out loss, nats", "loss"), courses


def _looks(score: _Score, courses: list[_Course]) -> Markup:
    drawn, kept = [], []
    for course in courses:
        checks, best = course.record["checks"], course.record["best"]
        points = [(check["images"], score.of(check)) for check in checks]
        titles = [f"{value:.4g} {score.unit}" for _, value in points]
        drawn.append(Curve(course.name, points, True, best, (), titles, course.series))
        kept.append(f"{course.name} {titles[best]}")
    alt = f"{score.name} over the images seen. Kept: {'; '.join(kept)}."
    return plane(drawn, _ACROSS, score.name, alt, most=score.most)


def _losses(courses: list[_Course]) -> Markup:
    drawn = []
    for course in courses:
        losses = course.record["losses"]
        width = course.record["checks"][-1]["images"] / max(len(losses), 1)
        points = [((place + 0.5) * width, loss) for place, loss in enumerate(losses)]
        drawn.append(Curve(course.name, points, series=course.series))
    return plane(drawn, _ACROSS, "training loss", "Training loss over the images seen.")

"""Models of rising speed along one Pareto front: accuracy and KL against measured time, and where the front bends.

`sweep.json` is written before the first point and after every one, so that a sweep that was stopped goes on behind its
last one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitfx.pruning.goal import reaches
from vitfx.reports.points import KNEE_RULE
from vitfx.reports.records import SWEEP_RECORD, Facts
from vitfx.runs.beside_plain import BesidePlain
from vitfx.support.errors import UserError
from vitfx.support.files import SWEEP, check_same
from vitfx.support.json_files import write_json
from vitfx.support.tables import Table, markdown_report
from vitfx.support.text import digits


@dataclass(frozen=True, kw_only=True)
class Point(BesidePlain):
    """One model of the front. asked: the speed-up that was asked for, None for exact rewrites alone. params, flops:
    shares of the original's that are left. rounds: cuts so far, which the seed of the next is counted from. folder:
    where its plan and its file are, beside sweep.json."""

    asked: float | None
    params: float
    flops: float
    rounds: int
    folder: str

    @property
    def name(self) -> str:
        return "exact rewrites alone" if self.asked is None else f"{self.asked:g}×"

    @property
    def share(self) -> float:
        """Of the plain export's time."""
        return 1 / self.speedup

    @property
    def lost(self) -> float | None:
        """Points of top-1."""
        if self.accuracy is None or self.plain_accuracy is None:
            return None
        return 100 * (self.plain_accuracy - self.accuracy)

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "points_lost": self.lost}

    @staticmethod
    def from_json(record: dict[str, Any]) -> Point:
        """Raises TypeError for anything but what `to_json` makes."""
        return Point(**{name: value for name, value in record.items() if name != "points_lost"})


def read_speeds(text: str) -> tuple[float, ...]:
    """ "1.2:2.0:5" -> 1.2, 1.4, 1.6, 1.8 and 2.0. Raises UserError."""
    try:
        low, high, count = (kind(part) for kind, part in zip((float, float, int), text.split(":"), strict=True))
    except ValueError as error:
        raise UserError(f"--sweep {text} is not LOW:HIGH:COUNT: give for example 1.2:2.0:5") from error
    if not 1 < low < high < math.inf or count < 2:
        raise UserError(f"--sweep {text} is no range of speed-ups: give 1 < LOW < HIGH, and a COUNT of 2 or more")
    return tuple(float(f"{low + (high - low) * index / (count - 1):.4g}") for index in range(int(count)))


def by_speed(points: Iterable[Point]) -> tuple[Point, ...]:
    """By rising speed-up that was asked for, exact rewrites alone first."""
    return tuple(sorted(points, key=lambda one: one.asked or 1.0))


def missed(points: Iterable[Point]) -> str | None:
    """The speed-ups that were asked for and not measured, in words; None where all were."""
    behind = [one for one in points if one.asked is not None and not reaches(one.speedup, one.asked)]
    if not behind:
        return None
    wanted, found = ", ".join(one.name for one in behind), ", ".join(f"{one.speedup:.2f}×" for one in behind)
    return f"{wanted} faster was asked for and missed: measured {found}"


def knee(points: Sequence[Point]) -> Point | None:
    """Where more speed begins to cost much more, by `KNEE_RULE` (Satopää et al. 2011, "Kneedle", without smoothing).

    points: by rising speed-up. None where no point lies below the line, and for fewer than three.
    """
    if len(points) < 3:
        return None
    first, last = points[0], points[-1]
    times, costs = first.share - last.share, last.kl - first.kl
    if times <= 0 or costs <= 0:
        return None
    found = [((first.share - one.share) / times - (one.kl - first.kl) / costs, one) for one in points[1:-1]]
    distance, best = max(found, key=lambda pair: pair[0])
    return best if distance > 0 else None


def to_table(points: Sequence[Point]) -> Table:
    """The knee is marked."""
    bend = knee(points)
    rows = [
        (
            point.name,
            f"{point.speedup:.3f}×",
            digits(point.ms),
            f"{point.kl:.4f}",
            f"{point.agreement:.2%}",
            "" if point.accuracy is None else f"{point.accuracy:.2%}",
            "" if point.lost is None else f"{point.lost:+.2f}",
            f"{point.flops:.3f}",
            f"{point.params:.3f}",
            "knee" if point is bend else "",
        )
        for point in points
    ]
    columns = ("asked", "measured", "ms", "KL", "agreement", "top-1", "points lost", "FLOPs left", "parameters left")
    return Table((*columns, ""), rows, left=())


def to_markdown(points: Sequence[Point], settings: Facts, environment: Facts, note: str) -> str:
    """sweep.md. note: what is to be known of the plot."""
    bend = knee(points)
    found = "No point lies below that line: the front has no knee." if bend is None else f"The knee is {bend.name}."
    facts = [
        f"Speed-ups are against the plain export, measured in turns on {settings['target']}; KL, agreement and "
        f"top-1 are those of the exported files on {points[0].images} evaluation images.",
        f"Knee: {KNEE_RULE}. {found}",
        note,
    ]
    title = f"{settings['model']}: accuracy and KL against time"
    return markdown_report(title, to_table(points), facts, settings, environment)


def read_points(folder: Path, settings: Mapping[str, Any], *, force: bool) -> tuple[tuple[Point, ...], dict[str, Any]]:
    """Points of an earlier run with the same settings, by rising speed-up, and the environment that they were recorded
    with; nothing with force, or where there is no file.

    settings: all that a point depends on, fingerprints included, JSON-ready. Raises UserError where the file has a
    sweep of other settings, or is not one.
    """
    path = folder / SWEEP
    if force or not path.exists():
        return (), {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        earlier: dict[str, Any] = record["settings"]
        environment: dict[str, Any] = record["environment"]
        points = [Point.from_json(one) for one in record["points"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no sweep ({error!r}): name another folder with --out, or pass --force") from error
    check_same(path, "sweep", earlier, settings)
    return by_speed(points), environment


def write_points(
    folder: Path, points: Sequence[Point], settings: Mapping[str, Any], environment: Mapping[str, Any]
) -> None:
    """environment: of the machine that measured last, empty before the first point. Raises WriteError."""
    bend = knee(points)
    record = {
        "settings": dict(settings),
        "environment": dict(environment),
        "knee": {"asked": None if bend is None else bend.asked, "found": bend is not None, "rule": KNEE_RULE},
        "points": [one.to_json() for one in points],
    }
    write_json(folder / SWEEP, SWEEP_RECORD, record)


_LINE, _MARK = "#3b6fb6", "#c8553d"


def draw_front(points: Sequence[Point], title: str) -> Figure:
    """KL over time, and top-1 over time where the images have labels. points: two or more, by rising speed-up."""
    from matplotlib.figure import Figure

    labelled = points[0].accuracy is not None
    figure = Figure(figsize=(10.5 if labelled else 6, 4.2), layout="constrained")
    panels = figure.subplots(1, 2 if labelled else 1, squeeze=False)[0]
    bend = knee(points)
    _panel(panels[0], points, [one.kl for one in points], bend)
    panels[0].set(ylabel="D_KL from the original, nats an image", title=title)
    ends = points[0], points[-1]
    panels[0].plot([one.share for one in ends], [one.kl for one in ends], "--", color="#999", linewidth=0.8)
    if labelled:
        _panel(panels[1], points, [100 * (one.accuracy or 0.0) for one in points], bend)
        whole = 100 * (points[0].plain_accuracy or 0.0)
        panels[1].axhline(whole, color="#999", linewidth=0.8, linestyle=":", label=f"original, {whole:.2f} %")
        panels[1].set(ylabel="top-1, %", title=f"{points[0].images} evaluation images")
    for panel in panels:
        panel.legend()
    return figure


def _panel(panel: Axes, points: Sequence[Point], values: Sequence[float], bend: Point | None) -> None:
    panel.plot([one.share for one in points], values, color=_LINE, marker="o", markersize=4, label="pruned")
    for one, value in zip(points, values, strict=True):
        panel.annotate(
            f"{one.speedup:.2f}×", (one.share, value), xytext=(4, 4), textcoords="offset points", fontsize="small"
        )
        if one is bend:
            panel.plot(one.share, value, "*", color=_MARK, markersize=14, label=f"knee, {one.speedup:.2f}×")
    panel.set(xlabel="share of the plain export's time")

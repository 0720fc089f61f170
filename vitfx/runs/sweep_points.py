"""Models of rising speed along one Pareto front: accuracy and KL against measured time, and where the front bends."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitfx.pruning.goal import reaches
from vitfx.reports.points import KNEE_RULE
from vitfx.reports.records import SWEEP_RECORD, Facts
from vitfx.runs.beside_plain import BesidePlain
from vitfx.runs.step_file import StepFile, read_range
from vitfx.support.files import SWEEP
from vitfx.support.tables import Table, markdown_report
from vitfx.support.text import digits, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class Point(BesidePlain):
    """One model of the front."""

    asked: float | None  #: the speed-up that was asked for, None for exact rewrites alone
    params: float  #: the share of the original's that is left
    flops: float  #: likewise
    rounds: int  #: cuts so far, from which the seed of the next follows
    folder: str  #: with its plan and its file, beside sweep.json

    @property
    def name(self) -> str:
        return "exact rewrites alone" if self.asked is None else f"{self.asked:g}×"

    @property
    def share(self) -> float:
        """Its time as a share of the plain export's."""
        return 1 / self.speedup

    @property
    def lost(self) -> float | None:
        """Points of top-1 lost."""
        if self.accuracy is None or self.plain_accuracy is None:
            return None
        return 100 * (self.plain_accuracy - self.accuracy)

    def to_json(self) -> dict[str, Any]:
        return {**super().to_json(), "points_lost": self.lost}

    @staticmethod
    def from_json(record: dict[str, Any]) -> Point:
        """Raises TypeError or AttributeError for anything but what `to_json` makes."""
        return Point(**{name: value for name, value in record.items() if name != "points_lost"})


def read_speeds(text: str) -> tuple[float, ...]:
    """ "1.2:2.0:5" -> 1.2, 1.4, 1.6, 1.8 and 2.0. Raises UserError."""
    low, high, count = read_range("sweep", text, "1.2:2.0:5", above=1)
    return tuple(float(f"{low + (high - low) * index / (count - 1):.4g}") for index in range(count))


def by_speed(points: Iterable[Point]) -> tuple[Point, ...]:
    """By the speed-up that was asked for, rising, exact rewrites alone first."""
    return tuple(sorted(points, key=lambda point: point.asked or 1.0))


def missed(points: Iterable[Point]) -> str | None:
    """The speed-ups that were asked for and not reached, in words; None where all were."""
    behind = [point for point in points if point.asked is not None and not reaches(point.speedup, point.asked)]
    if not behind:
        return None
    wanted, measured = (
        ", ".join(texts) for texts in zip(*((point.name, f"{point.speedup:.2f}×") for point in behind), strict=True)
    )
    return f"asked for {wanted} faster, measured {measured}"


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
    distances = [((first.share - point.share) / times - (point.kl - first.kl) / costs, point) for point in points[1:-1]]
    distance, best = max(distances, key=lambda pair: pair[0])
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
            percent(point.agreement),
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


def to_markdown(
    points: Sequence[Point], settings: Facts, environment: Facts, note: str, remarks: Sequence[str] = ()
) -> str:
    """sweep.md. note: what is to be known of the plot. remarks: what was inferred of the model and its data."""
    bend = knee(points)
    bend_fact = "No point lies below that line: the front has no knee." if bend is None else f"The knee is {bend.name}."
    facts = [
        f"Speed-ups are against the plain export, measured in turns on {settings['target']}; KL, agreement and "
        f"top-1 are those of the exported files on {points[0].images} evaluation images.",
        f"Knee: {KNEE_RULE}. {bend_fact}",
        note,
        *remarks,
    ]
    title = f"{settings['model']}: accuracy and KL against time"
    return markdown_report(title, to_table(points), facts, settings, environment)


_FILE = StepFile(SWEEP_RECORD, "sweep", "points", Point.from_json)


def read_points(
    folder: Path, settings: Mapping[str, object], *, force: bool
) -> tuple[tuple[Point, ...], dict[str, Any]]:
    """Points of an earlier run, by rising speed-up, and the machine: see `StepFile.read`."""
    points, machine = _FILE.read(folder / SWEEP, settings, force=force)
    return by_speed(points), machine


def write_points(
    folder: Path, points: Sequence[Point], settings: Mapping[str, object], machine: Mapping[str, Any]
) -> None:
    """See `StepFile.write`."""
    bend = knee(points)
    knee_record = {"asked": None if bend is None else bend.asked, "found": bend is not None, "rule": KNEE_RULE}
    _FILE.write(folder / SWEEP, [point.to_json() for point in points], settings, machine, knee=knee_record)


_LINE, _MARK = "#3b6fb6", "#c8553d"


def draw_front(points: Sequence[Point], title: str) -> Figure:
    """KL over time, and top-1 over time where the images have labels. points: two or more, by rising speed-up."""
    from matplotlib.figure import Figure

    labelled = points[0].accuracy is not None
    figure = Figure(figsize=(10.5 if labelled else 6, 4.2), layout="constrained")
    panels = figure.subplots(1, 2 if labelled else 1, squeeze=False)[0]
    bend = knee(points)
    _panel(panels[0], points, [point.kl for point in points], bend)
    panels[0].set(ylabel="D_KL from the original, nats an image", title=title)
    ends = points[0], points[-1]
    panels[0].plot([point.share for point in ends], [point.kl for point in ends], "--", color="#999", linewidth=0.8)
    if labelled:
        _panel(panels[1], points, [100 * (point.accuracy or 0.0) for point in points], bend)
        whole = 100 * (points[0].plain_accuracy or 0.0)
        panels[1].axhline(whole, color="#999", linewidth=0.8, linestyle=":", label=f"original, {whole:.2f} %")
        panels[1].set(ylabel="top-1, %", title=f"{points[0].images} evaluation images")
    for panel in panels:
        panel.legend()
    return figure


def _panel(panel: Axes, points: Sequence[Point], values: Sequence[float], bend: Point | None) -> None:
    panel.plot([point.share for point in points], values, color=_LINE, marker="o", markersize=4, label="pruned")
    for point, value in zip(points, values, strict=True):
        panel.annotate(
            f"{point.speedup:.2f}×", (point.share, value), xytext=(4, 4), textcoords="offset points", fontsize="small"
        )
        if point is bend:
            panel.plot(point.share, value, "*", color=_MARK, markersize=14, label=f"knee, {point.speedup:.2f}×")
    panel.set(xlabel="share of the plain export's time")

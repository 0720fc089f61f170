"""Models of rising speed along one Pareto front: accuracy and KL against measured time, and where the front bends."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE
from rich.table import Table

from vitfx.provenance_lines import provenance_lines
from vitfx.pruning.goal import reaches
from vitfx.runs.beside_plain import BesidePlain
from vitfx.support.errors import UserError
from vitfx.support.text import digits

KNEE_RULE = (
    "the point that lies farthest below the straight line from the first to the last point, in KL over time, both as "
    "shares of their ranges"
)


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
    """For a console; the knee is marked."""
    table = Table(box=SIMPLE)
    for column in _COLUMNS:
        table.add_column(column, justify="right", no_wrap=True)
    for row in _rows(points):
        table.add_row(*row)
    return table


def to_markdown(points: Sequence[Point], settings: dict[str, Any], environment: dict[str, Any], note: str) -> str:
    """sweep.md. note: what is to be known of the plot."""
    bend = knee(points)
    said = "No point lies below that line: the front has no knee." if bend is None else f"The knee is {bend.name}."
    return "\n".join(
        [
            f"# {settings['model']}: accuracy and KL against time",
            "",
            f"| {' | '.join(_COLUMNS)} |",
            f"| {' | '.join(['---:'] * len(_COLUMNS))} |",
            *(f"| {' | '.join(row)} |" for row in _rows(points)),
            "",
            f"- Speed-ups are against the plain export, measured in turns on {settings['target']}; KL, agreement and "
            f"top-1 are those of the exported files on {points[0].images} evaluation images.",
            f"- Knee: {KNEE_RULE}. {said}",
            f"- {note}",
            *provenance_lines(settings, environment),
        ]
    )


_COLUMNS = ("asked", "measured", "ms", "KL", "agreement", "top-1", "points lost", "FLOPs left", "parameters left", "")


def _rows(points: Sequence[Point]) -> list[tuple[str, ...]]:
    bend = knee(points)
    return [
        (
            one.name,
            f"{one.speedup:.3f}×",
            digits(one.ms),
            f"{one.kl:.4f}",
            f"{one.agreement:.2%}",
            "" if one.accuracy is None else f"{one.accuracy:.2%}",
            "" if one.lost is None else f"{one.lost:+.2f}",
            f"{one.flops:.3f}",
            f"{one.params:.3f}",
            "knee" if one is bend else "",
        )
        for one in points
    ]

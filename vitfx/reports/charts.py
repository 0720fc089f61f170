"""Small pictures as inline SVG: bars, points in a plane, lines. Their colours are the page's, light or dark."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from vitfx.reports.labels import RADIUS, place_labels
from vitfx.support.svg import drawing, element

_WIDTH = 420
_COLOURS = 6
_LABELS, _VALUES = 128, 64
_LEFT, _RIGHT, _TOP, _BOTTOM, _HEIGHT = 52, 20, 30, 42, 290
_NEAR = 9
"""Points nearer than this have one label."""
_CROWDED = 40
"""A line of more points than this is drawn without them."""


@dataclass(frozen=True)
class Bar:
    label: str
    value: float
    shown: str  #: the value as text
    series: int  #: which colour it has


@dataclass(frozen=True)
class Curve:
    """Points, joined or not. Where the colours begin again, points are hollow and lines dashed."""

    name: str  #: in the legend
    points: Sequence[tuple[float, float]]
    joined: bool = True  #: a line runs through the points
    marked: int | None = None  #: the position of a point that stands out
    labels: Sequence[str] = ()  #: written beside each point, if any
    titles: Sequence[str] = ()  #: of each point, shown to a pointer that rests on it
    series: int = 1  #: which colour it has

    @property
    def colour(self) -> str:
        return _colour(self.series)

    @property
    def hollow(self) -> bool:
        return self.series // _COLOURS % 2 == 1

    @property
    def ink(self) -> dict[str, object]:
        """The attributes of its points."""
        if not self.hollow:
            return {"fill": self.colour}
        return {"fill": "var(--back)", "stroke": self.colour, "stroke_width": "1.5"}


@dataclass(frozen=True)
class _Scale:
    """Numbers to places in the picture."""

    ticks: tuple[float, ...]  #: round numbers that cover the data
    start: float
    end: float

    def at(self, value: float) -> float:
        low, high = self.ticks[0], self.ticks[-1]
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def _colour(series: int) -> str:
    return f"var(--c{series % _COLOURS})"


def bars(groups: Sequence[tuple[str, Sequence[Bar]]], alt: str) -> Markup:
    """Groups below one another, each with a scale of its own."""
    parts, y = [], 0
    room = _WIDTH - _LABELS - _VALUES
    for title, members in groups:
        parts.append(element("text", title, x=0, y=y + 14, class_="soft"))
        y += 20
        most = max((bar.value for bar in members), default=0) or 1
        for bar in members:
            length = max(room * bar.value / most, 1.0)
            parts.append(element("text", short(bar.label, 20), x=0, y=y + 14))
            parts.append(element("rect", x=_LABELS, y=y + 2, width=length, height=16, rx=2, fill=_colour(bar.series)))
            parts.append(element("text", bar.shown, x=_LABELS + length + 6, y=y + 14))
            y += 22
        y += 8
    return drawing(_WIDTH, y, alt, parts) if parts else Markup("")


def plane(
    curves: Sequence[Curve], across: str, up: str, alt: str, *, legend: bool = True, most: float = math.inf
) -> Markup:
    """Points, joined or not, over two axes.

    across, up: what the axes are.
    most: what no value upwards can exceed.
    """
    points = [point for curve in curves for point in curve.points]
    if not points:
        return Markup("")
    x = _Scale(ticks(*_range([value for value, _ in points])), _LEFT, _WIDTH - _RIGHT)
    y = _Scale(ticks(*_range([value for _, value in points], most)), _HEIGHT - _BOTTOM, _TOP)
    parts = [
        element("text", up, x=0, y=14, class_="soft"),
        *_axes(x, y),
        element("text", across, x=(x.start + x.end) / 2, y=_HEIGHT - 6, text_anchor="middle", class_="soft"),
    ]
    for curve in curves:
        parts += _drawn(curve, x, y)
    parts += _labelled(curves, x, y)
    height = _HEIGHT
    for curve in curves if legend else ():
        parts.append(element("rect", x=_LEFT, y=height + 3, width=10, height=10, **curve.ink))
        parts.append(element("text", short(curve.name, 48), x=_LEFT + 16, y=height + 12))
        height += 18
    return drawing(_WIDTH, height, alt, parts)


def _axes(x: _Scale, y: _Scale) -> Iterator[Markup]:
    for value in y.ticks:
        at = y.at(value)
        yield element("line", class_="axis", x1=x.start, x2=x.end, y1=at, y2=at)
        yield element("text", digits(value), x=x.start - 6, y=at + 4, text_anchor="end", class_="soft")
    for value in x.ticks:
        at = x.at(value)
        yield element("line", class_="axis", x1=at, x2=at, y1=y.start, y2=y.start + 5)
        yield element("text", digits(value), x=at, y=y.start + 18, text_anchor="middle", class_="soft")


def _drawn(curve: Curve, x: _Scale, y: _Scale) -> Iterator[Markup]:
    places = [(x.at(across), y.at(up)) for across, up in curve.points]
    if curve.joined and len(places) > 1:
        line = " ".join(f"{across:.1f},{down:.1f}" for across, down in places)
        dashes = "5 3" if curve.hollow else None
        yield element(
            "polyline", points=line, fill="none", stroke=curve.colour, stroke_width="1.5", stroke_dasharray=dashes
        )
    crowded = curve.joined and len(places) > _CROWDED and not curve.labels
    for index, (across, down) in enumerate(places):
        marked = index == curve.marked
        if crowded and not marked:
            continue
        title = element("title", curve.titles[index]) if curve.titles else ""
        ring = {"stroke": "var(--ink)", "stroke_width": 2} if marked else {}
        yield element("circle", title, cx=across, cy=down, r=6 if marked else RADIUS, **curve.ink | ring)


def _labelled(curves: Sequence[Curve], x: _Scale, y: _Scale) -> list[Markup]:
    """Labels beside their points, where possible on nothing else; those of points that lie on one another as one."""
    labels: list[tuple[float, float, list[str]]] = []
    for curve in curves:
        for (across, up), label in zip(curve.points, curve.labels, strict=False):
            if not label:
                continue
            place = x.at(across), y.at(up)
            near = next((names for *other, names in labels if math.dist(other, place) < _NEAR), None)
            if near is None:
                labels.append((*place, [label]))
            elif label not in near:
                near.append(label)
    points = [(x.at(across), y.at(up)) for curve in curves if curve.labels for across, up in curve.points]
    joined = [(across, down, ", ".join(names)) for across, down, names in labels]
    return place_labels(joined, points, (x.start + x.end) / 2, _WIDTH, y.start)


def ticks(low: float, high: float) -> tuple[float, ...]:
    """Some four to eight round numbers from `low` or below to `high` or above. low: below high."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(size * power for size in (1, 2, 5, 10) if size * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return tuple(place * step for place in range(first, last + 1))


def _range(values: Sequence[float], most: float = math.inf) -> tuple[float, float]:
    """What an axis must show: all values, with some room where they are one."""
    low, high = min(values), max(values)
    if high - low > 1e-9 * max(abs(low), abs(high)):
        return low, high
    room = abs(low) * 0.05 or 1.0
    return low - room, min(high + room, max(most, high))


def digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{round(value, 10):.4g}"


def short(label: str, most: int) -> str:
    """The end of a path says more than its beginning."""
    return label if len(label) <= most else f"…{label[1 - most :]}"

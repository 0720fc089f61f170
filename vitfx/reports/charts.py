"""Small pictures as inline SVG: bars, points in a plane, lines. Their colours are the page's, light or dark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from vitfx.reports.page import text

_WIDTH = 420
_COLOURS = 6
_LABELS, _VALUES = 128, 64
_LEFT, _RIGHT, _TOP, _BOTTOM, _HEIGHT = 52, 20, 30, 42, 290
_NEAR = 9
"""Points nearer than this have one label."""


@dataclass(frozen=True)
class Bar:
    """series: which colour it has."""

    label: str
    value: float
    shown: str
    series: int


@dataclass(frozen=True)
class Curve:
    """name: in the legend. joined: a line runs through the points. marked: the place of a point that stands out.
    labels: what is written beside each point, if anything. titles: what a pointer that rests on it is told. series:
    which colour it has; where the colours begin again, points are hollow and lines dashed."""

    name: str
    points: Sequence[tuple[float, float]]
    joined: bool = True
    marked: int | None = None
    labels: Sequence[str] = ()
    titles: Sequence[str] = ()
    series: int = 1

    @property
    def hollow(self) -> bool:
        return self.series // _COLOURS % 2 == 1


@dataclass(frozen=True)
class _Scale:
    """Numbers to places in the picture. ticks: round numbers that cover the data."""

    ticks: tuple[float, ...]
    start: float
    end: float

    def at(self, value: float) -> float:
        low, high = self.ticks[0], self.ticks[-1]
        return self.start + (value - low) / (high - low) * (self.end - self.start)


def svg(width: float, height: float, alt: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{text(alt)}">'
        f"<title>{text(alt)}</title>{''.join(parts)}</svg>"
    )


def bars(groups: Sequence[tuple[str, Sequence[Bar]]], alt: str) -> str:
    """Groups below one another, each with a scale of its own."""
    parts, y = [], 0.0
    room = _WIDTH - _LABELS - _VALUES
    for title, members in groups:
        parts.append(f'<text x="0" y="{y + 14:g}" class="soft">{text(title)}</text>')
        y += 20
        most = max((one.value for one in members), default=0) or 1
        for one in members:
            length = max(room * one.value / most, 1)
            parts.append(f'<text x="0" y="{y + 14:g}">{text(short(one.label, 20))}</text>')
            parts.append(
                f'<rect x="{_LABELS}" y="{y + 2:g}" width="{length:.1f}" height="16" rx="2" '
                f'fill="var(--c{one.series % _COLOURS})"></rect>'
            )
            parts.append(f'<text x="{_LABELS + length + 6:.1f}" y="{y + 14:g}">{text(one.shown)}</text>')
            y += 22
        y += 8
    return svg(_WIDTH, y, alt, parts) if parts else ""


def plane(
    curves: Sequence[Curve], across: str, up: str, alt: str, *, legend: bool = True, most: float = math.inf
) -> str:
    """Points, joined or not, over two axes. across, up: what the axes are. most: what no value upwards can pass."""
    points = [point for curve in curves for point in curve.points]
    if not points:
        return ""
    x = _Scale(ticks(*_range([one for one, _ in points])), _LEFT, _WIDTH - _RIGHT)
    y = _Scale(ticks(*_range([one for _, one in points], most)), _HEIGHT - _BOTTOM, _TOP)
    parts = [f'<text x="0" y="14" class="soft">{text(up)}</text>', *_axes(x, y)]
    parts.append(
        f'<text x="{(_LEFT + _WIDTH - _RIGHT) / 2:g}" y="{_HEIGHT - 6}" text-anchor="middle" class="soft">'
        f"{text(across)}</text>"
    )
    for curve in curves:
        parts += _drawn(curve, x, y)
    parts += _labelled(curves, x, y)
    height = float(_HEIGHT)
    if legend:
        for curve in curves:
            fill, edge = _ink(curve)
            parts.append(
                f'<rect x="{_LEFT}" y="{height + 3:g}" width="10" height="10" fill="{fill}"{edge}></rect>'
                f'<text x="{_LEFT + 16}" y="{height + 12:g}">{text(short(curve.name, 48))}</text>'
            )
            height += 18
    return svg(_WIDTH, height, alt, parts)


def _axes(x: _Scale, y: _Scale) -> list[str]:
    parts = []
    for value in y.ticks:
        at = y.at(value)
        parts.append(f'<line class="axis" x1="{x.start:g}" x2="{x.end:g}" y1="{at:.1f}" y2="{at:.1f}"></line>')
        parts.append(
            f'<text x="{x.start - 6:g}" y="{at + 4:.1f}" text-anchor="end" class="soft">{digits(value)}</text>'
        )
    for value in x.ticks:
        at = x.at(value)
        parts.append(f'<line class="axis" x1="{at:.1f}" x2="{at:.1f}" y1="{y.start}" y2="{y.start + 5}"></line>')
        parts.append(f'<text x="{at:.1f}" y="{y.start + 18}" text-anchor="middle" class="soft">{digits(value)}</text>')
    return parts


def _ink(curve: Curve) -> tuple[str, str]:
    """What its points are filled with, and the attributes of their edge."""
    colour = f"var(--c{curve.series % _COLOURS})"
    return ("var(--back)", f' stroke="{colour}" stroke-width="1.5"') if curve.hollow else (colour, "")


def _drawn(curve: Curve, x: _Scale, y: _Scale) -> list[str]:
    fill, edge = _ink(curve)
    at = [(x.at(one), y.at(other)) for one, other in curve.points]
    parts = []
    if curve.joined and len(at) > 1:
        line = " ".join(f"{one:.1f},{other:.1f}" for one, other in at)
        dashes = ' stroke-dasharray="5 3"' if curve.hollow else ""
        parts.append(
            f'<polyline points="{line}" fill="none" stroke="var(--c{curve.series % _COLOURS})" stroke-width="1.5"'
            f"{dashes}></polyline>"
        )
    crowded = curve.joined and len(at) > 40 and not curve.labels
    for place, (one, other) in enumerate(at):
        marked = place == curve.marked
        if crowded and not marked:
            continue
        told = f"<title>{text(curve.titles[place])}</title>" if curve.titles else ""
        ring = ' stroke="var(--ink)" stroke-width="2"' if marked else edge
        radius = 6 if marked else RADIUS
        parts.append(f'<circle cx="{one:.1f}" cy="{other:.1f}" r="{radius}" fill="{fill}"{ring}>{told}</circle>')
    return parts


def _labelled(curves: Sequence[Curve], x: _Scale, y: _Scale) -> list[str]:
    """Labels beside their points, where possible on nothing else; those of points that lie on one another as one."""
    found: list[tuple[float, float, list[str]]] = []
    for curve in curves:
        for (one, other), label in zip(curve.points, curve.labels, strict=False):
            if not label:
                continue
            at = x.at(one), y.at(other)
            near = next((names for *place, names in found if math.dist(place, at) < _NEAR), None)
            if near is None:
                found.append((*at, [label]))
            elif label not in near:
                near.append(label)
    points = [(x.at(one), y.at(other)) for curve in curves if curve.labels for one, other in curve.points]
    labels = [(across, down, ", ".join(names)) for across, down, names in found]
    return written(labels, points, (x.start + x.end) / 2, _WIDTH, y.start)


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


RADIUS = 4
"""Of a point."""
_GLYPH = 6.5
"""The mean width of a letter."""
_ABOVE, _BELOW, _BESIDE = -6, 16, 8


@dataclass(frozen=True)
class _Box:
    left: float
    top: float
    right: float
    bottom: float

    def within(self, right: float, bottom: float) -> bool:
        return self.left >= 0 and self.right <= right and self.bottom <= bottom

    def meets(self, other: _Box) -> bool:
        apart = self.right <= other.left or other.right <= self.left
        return not apart and self.top < other.bottom and other.top < self.bottom


@dataclass(frozen=True)
class _Place:
    """Where a label of the point at `across` may stand: its base line at `down`, on the point's left or right."""

    across: float
    down: float
    left: bool
    said: str

    @property
    def near(self) -> float:
        return self.across + (-_BESIDE if self.left else _BESIDE)

    @property
    def box(self) -> _Box:
        far = self.near + (-_GLYPH if self.left else _GLYPH) * len(self.said)
        return _Box(min(self.near, far), self.down - 10, max(self.near, far), self.down + 2)

    def drawn(self) -> str:
        anchor = ' text-anchor="end"' if self.left else ""
        return f'<text x="{self.near:.1f}"{anchor} y="{self.down:.1f}">{text(self.said)}</text>'


def written(
    labels: Sequence[tuple[float, float, str]], points: Sequence[tuple[float, float]], middle: float, right: float,
    bottom: float,
) -> list[str]:  # fmt: skip
    """SVG texts. labels: across and down of a label's point, and what it says; they are placed in turn, first choice
    above the point and towards `middle`, if they can not beyond the picture's `right` nor below its `bottom`. points:
    what they should not stand on."""
    taken = [_Box(one - RADIUS, other - RADIUS, one + RADIUS, other + RADIUS) for one, other in points]
    parts = []
    for across, down, said in labels:
        sides = (True, False) if across > middle else (False, True)
        places = [_Place(across, down + lift, left, said) for lift in (_ABOVE, _BELOW) for left in sides]
        inside = [one for one in places if one.box.within(right, bottom)] or places
        best = next((one for one in inside if not any(map(one.box.meets, taken))), inside[0])
        taken.append(best.box)
        parts.append(best.drawn())
    return parts

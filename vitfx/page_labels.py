"""Where the labels of points stand in an SVG picture: beside their points, and where possible on nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vitfx.reports.page import text

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

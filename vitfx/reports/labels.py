"""Labels in pictures, beside their points and where possible on nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from vitfx.support.svg import element

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
    """Where a label may stand."""

    across: float  #: of its point
    down: float  #: of its own base line
    left: bool  #: whether it stands on the left of its point
    label: str

    @property
    def near(self) -> float:
        return float(self.across + (-_BESIDE if self.left else _BESIDE))

    @property
    def box(self) -> _Box:
        far = self.near + (-_GLYPH if self.left else _GLYPH) * len(self.label)
        return _Box(min(self.near, far), self.down - 10, max(self.near, far), self.down + 2)

    def drawn(self) -> Markup:
        return element("text", self.label, x=self.near, text_anchor="end" if self.left else None, y=float(self.down))


def place_labels(
    labels: Sequence[tuple[float, float, str]], points: Sequence[tuple[float, float]], middle: float, right: float,
    bottom: float,
) -> list[Markup]:  # fmt: skip
    """SVG texts, placed in turn: above the point and towards the middle where that is free.

    labels: across and down of a label's point, and its text.
    points: what no label should stand on.
    middle: of the picture, towards which labels go.
    right, bottom: where the picture ends.
    """
    taken = [_Box(across - RADIUS, down - RADIUS, across + RADIUS, down + RADIUS) for across, down in points]
    parts = []
    for across, down, label in labels:
        sides = (True, False) if across > middle else (False, True)
        places = [_Place(across, down + lift, left, label) for lift in (_ABOVE, _BELOW) for left in sides]
        inside = [place for place in places if place.box.within(right, bottom)] or places
        best = next((place for place in inside if not any(map(place.box.meets, taken))), inside[0])
        taken.append(best.box)
        parts.append(best.drawn())
    return parts

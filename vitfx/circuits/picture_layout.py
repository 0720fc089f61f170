"""Where the cells of a circuit's picture stand: the embedding at the bottom, sublayers upwards, the logits on top."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vitfx.circuits.circuit import EMBED, LOGITS
from vitfx.circuits.view import Sublayer

_BETWEEN_LAYERS = 0.4


@dataclass(frozen=True)
class Box:
    """In units of a cell with its distance to the next."""

    x: float  #: of the centre
    y: float  #: of the centre
    width: float
    height: float

    @property
    def left(self) -> float:
        return self.x - self.width / 2

    @property
    def bottom(self) -> float:
        return self.y - self.height / 2

    @property
    def top(self) -> float:
        return self.y + self.height / 2

    def port(self, x: float) -> float:
        """Where on a wide box a line from or to `x` ends."""
        room = max(0.0, self.width / 2 - 0.3)
        return min(max(x, self.x - room), self.x + room)


@dataclass(frozen=True)
class Layout:
    """Where everything stands, from x = -width / 2 and y = 0."""

    boxes: dict[str, Box]  #: of each cell, MLP, "embed" and "logits", by name
    rows: dict[str, float]  #: the height of each sublayer's row
    width: float
    height: float


def lay_out(sublayers: Sequence[Sublayer], filled: float) -> Layout:
    """filled: how much of its place a cell takes, 0..1. A row each sublayer, layers a little apart."""
    columns = max((len(sublayer.cells) for sublayer in sublayers), default=1)
    width = max(columns, 4)
    boxes = {EMBED: Box(0.0, 0.5, width - 1 + filled, filled)}
    rows: dict[str, float] = {}
    y, layer = 0.5, -1
    for sublayer in sublayers:
        y += 1 if sublayer.layer == layer else 1 + _BETWEEN_LAYERS
        layer = sublayer.layer
        rows[sublayer.name] = y
        count = len(sublayer.cells)
        for index, cell in enumerate(sublayer.cells):
            boxes[cell] = Box(index - (count - 1) / 2, y, filled, filled)
        boxes.setdefault(sublayer.name, Box(0.0, y, count - 1 + filled + 0.24, filled + 0.24))
    y += 1 + _BETWEEN_LAYERS
    boxes[LOGITS] = Box(0.0, y, width - 1 + filled, filled)
    return Layout(boxes, rows, float(width), y + 0.5)

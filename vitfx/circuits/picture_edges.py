"""Edges of a circuit's picture: curves upwards, by colour what they feed, by width and opacity how strong they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vitfx.circuits.circuit import EMBED, LOGITS, Decision, Reader
from vitfx.circuits.picture_layout import Layout
from vitfx.circuits.view import strength

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import LogNorm

# Okabe and Ito 2008: the colour-blind can tell them apart too.
COLOURS = {
    "queries": "#0072b2",
    "keys": "#e69f00",
    "values": "#009e73",
    "heads": "#0072b2",
    "MLPs": "#cc79a7",
    "logits": "#555555",
}
# Where on a head's lower side an edge arrives, and to which side it bows on its way past other cells.
_ARRIVALS = {"queries": -0.2, "keys": 0.0, "values": 0.2, "heads": 0.0}
_BOWS = {"queries": -0.6, "keys": -0.25, "values": 0.6, "heads": -0.5, "MLPs": 0.4, "logits": 0.5}


def feeds(reader: Reader) -> str:
    """The legend's word for what an edge feeds."""
    if reader.sublayer == LOGITS:
        return "logits"
    if reader.head is None:
        return "MLPs"
    return {"q": "queries", "k": "keys", "v": "values", None: "heads"}[reader.part]


def curve(layout: Layout, decision: Decision) -> list[tuple[float, float]]:
    """The four points of a cubic Bézier curve from the writer's upper side to the reader's lower one."""
    edge, fed = decision.edge, feeds(decision.edge.reader)
    reader = edge.reader.sublayer if edge.reader.head is None else f"{edge.reader.sublayer}.h{edge.reader.head}"
    start, end = layout.boxes[edge.writer.name], layout.boxes[reader]
    x_end = end.x + _ARRIVALS[fed] * end.width if fed in _ARRIVALS else end.port(start.x)
    x_start = start.port(x_end) if edge.writer.sublayer == EMBED else start.x
    rise = end.bottom - start.top
    # A neighbour is met straight; the further the reader, the wider past the cells between.
    bow = _BOWS[fed] * min(1.0, (rise - 0.5) / 2) if rise > 0.5 else 0.0
    return [
        (x_start, start.top),
        (x_start + bow, start.top + 0.45 * rise),
        (x_end + bow, end.bottom - 0.45 * rise),
        (x_end, end.bottom),
    ]


def paint_edges(axes: Axes, layout: Layout, decisions: Sequence[Decision], norm: LogNorm) -> None:
    """The strongest lie on top, all of them under the cells."""
    from matplotlib.collections import PathCollection
    from matplotlib.colors import to_rgba
    from matplotlib.path import Path

    weakest_first = decisions[::-1]
    paths = [Path(curve(layout, decision), [Path.MOVETO, *[Path.CURVE4] * 3]) for decision in weakest_first]
    shares = [float(norm(max(strength(decision.score), norm.vmin or 0.0))) for decision in weakest_first]
    colours = [
        to_rgba(COLOURS[feeds(decision.edge.reader)], 0.3 + 0.65 * share)
        for decision, share in zip(weakest_first, shares, strict=True)
    ]
    widths = [0.5 + 2.5 * share for share in shares]
    axes.add_collection(PathCollection(paths, facecolors="none", edgecolors=colours, linewidths=widths, zorder=1))

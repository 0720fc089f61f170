"""The panels of a circuit's picture. Each knows its size in inches and paints itself into axes of that size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitfx.circuits.circuit import EMBED, LOGITS, Decision
from vitfx.circuits.grid import LIGHT, ROW, Grid
from vitfx.circuits.picture_edges import COLOURS, feeds, paint_edges
from vitfx.circuits.picture_layout import Box, lay_out
from vitfx.circuits.view import Sublayer, layer_sums, strength

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import LogNorm

_MAP = "YlGnBu"
_DEAD, _ALIVE, _LINE = "#d4d4d4", "#fdf3d0", "#555555"
HEAT, INK, SOFT = "#2f66b0", "#1b1f24", "#59616b"
_CELL, _ROUTED_CELL = 0.34, 0.5
_PIXELS = 72
"""Of a grid, in an inch."""
_WIDEST, _HIGHEST = 18.0, 40.0
_SMALLEST_WITH_TEXT = 0.2
_DECADES = 3


@dataclass(frozen=True)
class Panel:
    """A part of a picture that paints itself. All sizes are in inches."""

    width: float  #: of the axes
    height: float  #: of the axes
    title: str
    paint: Callable[[Axes], None]
    left: float = 0.65  #: room beside the axes
    right: float = 0.0
    below: float = 0.0


def scale(values: Iterable[float]) -> LogNorm:
    """Logarithmic, up to the greatest, over at most three decades; what is below has the lowest colour."""
    from matplotlib.colors import LogNorm

    above = [value for value in values if value > 0]
    top = max(above, default=1.0)
    least = max(min(above, default=top / 10), top / 10**_DECADES)
    return LogNorm(least if least < top else top / 10, top, clip=True)


def edges_panel(sublayers: Sequence[Sublayer], alive: frozenset[str], drawn: Sequence[Decision], title: str) -> Panel:
    """Cells, layers upwards, with the edges drawn."""
    layout = lay_out(sublayers, 0.6)
    across, up = min(_ROUTED_CELL, _WIDEST / layout.width), min(_ROUTED_CELL, _HIGHEST / layout.height)

    def paint(axes: Axes) -> None:
        axes.set(xlim=(-layout.width / 2, layout.width / 2), ylim=(0, layout.height))
        axes.set_axis_off()
        frames = [layout.boxes[sublayer.name] for sublayer in sublayers if sublayer.kind == "m"]
        _paint_boxes(axes, frames, ["#f3f3f3"] * len(frames), "#aaaaaa")
        paint_edges(axes, layout, drawn, scale(strength(decision.score) for decision in drawn))
        names = [EMBED, *(cell for sublayer in sublayers for cell in sublayer.cells)]
        fills = [_ALIVE if name in alive else _DEAD for name in names]
        _paint_boxes(axes, [layout.boxes[name] for name in (*names, LOGITS)], [*fills, "white"], _LINE)
        for name in (*names, LOGITS) if min(across, up) >= _SMALLEST_WITH_TEXT else ():
            box, text = layout.boxes[name], name.partition(".")[2][1:] or name
            ink = "black" if name in alive or name == LOGITS else "#8a8a8a"
            axes.text(box.x, box.y, text, ha="center", va="center", fontsize=7, color=ink, zorder=4)
        for name, y in layout.rows.items():
            axes.text(-layout.width / 2 - 0.25, y, name, ha="right", va="center", fontsize=8)
        _legend(axes, [feeds(decision.edge.reader) for decision in drawn])

    return Panel(layout.width * across, layout.height * up, title, paint, below=0.75)


def _legend(axes: Axes, kinds: Sequence[str]) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Patch | Line2D] = [
        Patch(facecolor=_ALIVE, edgecolor=_LINE, label="alive"),
        Patch(facecolor=_DEAD, edgecolor=_LINE, label="dead"),
    ]
    handles += [
        Line2D([], [], color=COLOURS[kind], linewidth=2, label=f"to {kind}") for kind in COLOURS if kind in kinds
    ]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(0, -0.01), ncols=4, frameon=False, fontsize=8)


def grid_panel(grid: Grid, title: str, left: float) -> Panel:
    """Dead cells are crossed out."""

    def paint(axes: Axes) -> None:
        from matplotlib.colors import to_rgba

        axes.set(xlim=(0, grid.width), ylim=(grid.height, 0))
        axes.set_axis_off()
        boxes = [Box(cell.x + cell.width / 2, cell.y + ROW / 2 - 2, cell.width, ROW - 4) for cell in grid.cells]
        _paint_boxes(axes, boxes, [to_rgba(HEAT, cell.shade) for cell in grid.cells], "#cfd5dc")
        for cell, box in zip(grid.cells, boxes, strict=True):
            ink = "white" if cell.shade > LIGHT else INK
            if cell.dead:
                axes.plot(box.x, box.y, "x", color=ink, markersize=6, markeredgewidth=1, zorder=4)
            elif cell.labelled:
                axes.text(box.x, box.y, cell.label, ha="center", va="center", fontsize=7, color=ink, zorder=4)
        for heading, x in grid.headings:
            axes.text(x, 14, heading, fontsize=8, color=SOFT)
        for layer, y in grid.layers:
            axes.text(0, y + 14, f"layer {layer}", fontsize=8, color=SOFT)

    return Panel(grid.width / _PIXELS, grid.height / _PIXELS, title, paint, left, below=0.3)


def layers_panel(sublayers: Sequence[Sublayer], live: Sequence[Decision]) -> Panel:
    """Readers' layers over writers' layers: scores added by colour, and how many edges."""
    layers = list(range(max((sublayer.layer for sublayer in sublayers), default=0) + 1))
    writers, readers = [EMBED, *layers], [*layers, LOGITS]
    sums = layer_sums(live)
    norm = scale(total for total, _ in sums.values())
    size = min(_CELL, _WIDEST / len(writers))

    def paint(axes: Axes) -> None:
        axes.set(xlim=(0, len(writers)), ylim=(0, len(readers)), facecolor="white")
        for (writer, reader), (total, count) in sums.items():
            x, y = writers.index(writer) + 0.5, readers.index(reader) + 0.5
            fill = _colour(total, norm)
            _paint_boxes(axes, [Box(x, y, 0.96, 0.96)], [fill], "none")
            if size >= _SMALLEST_WITH_TEXT:
                axes.text(x, y, str(count), ha="center", va="center", fontsize=6, color=_ink(fill), zorder=4)
        axes.set_xticks([at + 0.5 for at in range(len(writers))], [str(layer) for layer in writers])
        axes.set_xlabel("writer's layer", fontsize=8)
        axes.set_ylabel("reader's layer", fontsize=8)
        _tick_layers(axes, [str(layer) for layer in readers])
        _colour_bar(axes, norm, size * len(writers))

    title = "live edges between layers: scores added, and how many"
    return Panel(len(writers) * size, len(readers) * size, title, paint, right=0.95, below=0.5)


def _tick_layers(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks([at + 0.5 for at in range(len(names))], names)
    axes.tick_params(length=0, labelsize=7)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _paint_boxes(axes: Axes, boxes: Sequence[Box], fills: Sequence[object], line: str) -> None:
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    patches = [Rectangle((box.left, box.bottom), box.width, box.height) for box in boxes]
    axes.add_collection(PatchCollection(patches, facecolors=fills, edgecolors=line, linewidths=0.6, zorder=3))


def _colour(score: float, norm: LogNorm) -> str:
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    return to_hex(colormaps[_MAP](float(norm(max(score, float(norm.vmin or 0))))))


def _ink(fill: str) -> str:
    """Black or white, whichever is read on this colour."""
    from matplotlib.colors import to_rgb

    red, green, blue = to_rgb(fill)
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 0.55 else "white"


def _colour_bar(axes: Axes, norm: LogNorm, width: float) -> None:
    from matplotlib.cm import ScalarMappable

    beside = axes.inset_axes((1 + 0.2 / width, 0, 0.14 / width, 1))
    bar = axes.figure.colorbar(ScalarMappable(norm, _MAP), cax=beside)
    least, greatest = float(norm.vmin or 0.0), float(norm.vmax or 0.0)
    ticks = [least * (greatest / least) ** (step / 3) for step in range(4)]
    bar.set_ticks(ticks, labels=[f"{tick:.2g}" for tick in ticks], minor=False)
    bar.ax.minorticks_off()
    bar.ax.tick_params(labelsize=7)
    bar.outline.set_linewidth(0.4)

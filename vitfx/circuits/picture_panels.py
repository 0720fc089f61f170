"""The panels of a circuit's picture. Each knows its size in inches and paints itself into axes of that size."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from vitfx.circuits.circuit import BOUND, EMBED, LOGITS, Circuit, Decision
from vitfx.circuits.picture_edges import COLOURS, feeds, paint_edges
from vitfx.circuits.picture_layout import Box, lay_out
from vitfx.circuits.view import Sublayer, layer_sums, reads_stream, strength, writer_scores

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import LogNorm

_MAP = "YlGnBu"
_DEAD, _ALIVE, _LINE = "#d4d4d4", "#fdf3d0", "#555555"
_CELL, _ROUTED_CELL = 0.34, 0.5
_WIDEST, _HIGHEST = 18.0, 40.0
_SMALLEST_WITH_TEXT = 0.2
_DECADES = 3


@dataclass(frozen=True)
class Panel:
    """width, height: of the axes in inches; left, right, below: room for what stands beside them. paint: draws."""

    width: float
    height: float
    title: str
    paint: Callable[[Axes], None]
    left: float = 0.65
    right: float = 0.0
    below: float = 0.0


def scale(values: Iterable[float]) -> LogNorm:
    """Logarithmic, up to the greatest, over at most three decades; what is below has the lowest colour."""
    from matplotlib.colors import LogNorm

    above = [value for value in values if value > 0]
    top = max(above, default=1.0)
    least = max(min(above, default=top / 10), top / 10**_DECADES)
    return LogNorm(least if least < top else top / 10, top, clip=True)


def _cell_scale(scores: Mapping[str, float]) -> LogNorm:
    """The embedding, which is nearly always far above all else, has the highest colour and does not set it."""
    return scale(score for name, score in scores.items() if name != EMBED)


def circuit_panel(
    circuit: Circuit, sublayers: Sequence[Sublayer], alive: frozenset[str], drawn: Sequence[Decision], title: str
) -> Panel:
    """Cells, layers upwards: by colour their score on the block and the head graph, else with the edges drawn."""
    stream = reads_stream(circuit)
    layout = lay_out(sublayers, 0.88 if stream else 0.6)
    size = _CELL if stream else _ROUTED_CELL
    across, up = min(size, _WIDEST / layout.width), min(size, _HIGHEST / layout.height)
    scores = writer_scores(circuit)
    norm = _cell_scale(scores)
    bounds = {one.edge.writer.name for one in circuit.decisions if one.basis == BOUND and one.kept} if stream else set()

    def paint(axes: Axes) -> None:
        _bare(axes, layout.width, layout.height)
        if not stream:
            frames = [layout.boxes[one.name] for one in sublayers if one.kind == "m"]
            _paint_boxes(axes, frames, ["#f3f3f3"] * len(frames), "#aaaaaa")
            paint_edges(axes, layout, drawn, scale(strength(one.score) for one in drawn))
        names = [EMBED, *(cell for one in sublayers for cell in one.cells)]
        colours = [_colour(scores.get(name, 0.0), norm) if stream else _ALIVE for name in names]
        fills = [colour if name in alive else _DEAD for name, colour in zip(names, colours, strict=True)]
        _paint_boxes(axes, [layout.boxes[name] for name in names], fills, _LINE)
        _paint_boxes(axes, [layout.boxes[LOGITS]], ["white"], _LINE)
        for name, fill in [*zip(names, fills, strict=True), (LOGITS, "white")]:
            box = layout.boxes[name]
            text = name if name in (EMBED, LOGITS) else name.partition(".")[2][1:]
            if min(across, up) >= _SMALLEST_WITH_TEXT:
                ink = _ink(fill) if name in alive or name == LOGITS else "#8a8a8a"
                axes.text(box.x, box.y, text, ha="center", va="center", fontsize=7, color=ink, zorder=4)
            if name in bounds and name in alive:
                axes.text(box.left + 0.07, box.top - 0.05, "≥", va="top", fontsize=5, color=_ink(fill), zorder=4)
        for name, y in layout.rows.items():
            axes.text(-layout.width / 2 - 0.25, y, name, ha="right", va="center", fontsize=8)
        _legend(axes, [feeds(one.edge.reader) for one in drawn], stream)

    return Panel(layout.width * across, layout.height * up, title, paint, below=0.75)


def _legend(axes: Axes, kinds: Sequence[str], stream: bool) -> None:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    fill = "#41b6c4" if stream else _ALIVE
    handles: list[Patch | Line2D] = [
        Patch(facecolor=fill, edgecolor=_LINE, label="alive"),
        Patch(facecolor=_DEAD, edgecolor=_LINE, label="dead"),
    ]
    handles += [
        Line2D([], [], color=COLOURS[kind], linewidth=2, label=f"to {kind}") for kind in COLOURS if kind in kinds
    ]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(0, -0.01), ncols=4, frameon=False, fontsize=8)


def scores_panel(circuit: Circuit, sublayers: Sequence[Sublayer], alive: frozenset[str]) -> Panel:
    """A row each layer, its heads and then its paths as columns. Dead ones are crossed out."""
    scores = writer_scores(circuit)
    norm = _cell_scale(scores)
    widths = {kind: max((len(one.cells) for one in sublayers if one.kind == kind), default=0) for kind in "am"}
    starts = {"a": 0.0, "m": widths["a"] + 0.5}
    columns, layers = starts["m"] + widths["m"], max((one.layer for one in sublayers), default=0) + 1
    across, up = min(_CELL, _WIDEST / columns), min(_CELL, _HIGHEST / layers)
    boxes = {
        cell: Box(starts[one.kind] + index + 0.5, one.layer + 0.5, 0.96, 0.96)
        for one in sublayers
        for index, cell in enumerate(one.cells)
    }

    def paint(axes: Axes) -> None:
        axes.set(xlim=(0, columns), ylim=(0, layers), facecolor="white")
        _paint_boxes(axes, list(boxes.values()), [_colour(scores[name], norm) for name in boxes], "none")
        dead = [name for name in boxes if name not in alive]
        crosses = ["#777777" if _ink(_colour(scores[name], norm)) == "black" else "white" for name in dead]
        area = 16 * min(1.0, min(across, up) / _CELL) ** 2
        at = [boxes[name].x for name in dead], [boxes[name].y for name in dead]
        axes.scatter(at[0], at[1], s=area, c=crosses, marker="x", linewidths=1, zorder=4)
        named = across >= _SMALLEST_WITH_TEXT
        blocks = all("." not in name for name in boxes)
        letters = {"a": "h", "m": "p"}
        ticks = [
            (starts[kind] + index + 0.5, kind if blocks else f"{letters[kind]}{index}")
            for kind in "am"
            for index in range(widths[kind])
        ]
        axes.set_xticks([at for at, _ in ticks] if named else [], [name for _, name in ticks] if named else [])
        _tick_layers(axes, [str(layer) for layer in range(layers)])
        _colour_bar(axes, norm, across * columns)

    what = "score of each edge" if reads_stream(circuit) else "scores added over a writer's kept edges"
    return Panel(columns * across, layers * up, f"{what}, by layer; × is dead", paint, right=0.95, below=0.3)


def layers_panel(sublayers: Sequence[Sublayer], live: Sequence[Decision]) -> Panel:
    """Readers' layers over writers' layers: scores added by colour, and how many edges."""
    layers = list(range(max((one.layer for one in sublayers), default=0) + 1))
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
        axes.set_xticks([at + 0.5 for at in range(len(writers))], [str(one) for one in writers])
        axes.set_xlabel("writer's layer", fontsize=8)
        axes.set_ylabel("reader's layer", fontsize=8)
        _tick_layers(axes, [str(one) for one in readers])
        _colour_bar(axes, norm, size * len(writers))

    title = "live edges between layers: scores added, and how many"
    return Panel(len(writers) * size, len(readers) * size, title, paint, right=0.95, below=0.5)


def _bare(axes: Axes, width: float, height: float) -> None:
    axes.set(xlim=(-width / 2, width / 2), ylim=(0, height))
    axes.set_axis_off()


def _tick_layers(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks([at + 0.5 for at in range(len(names))], names)
    axes.tick_params(length=0, labelsize=7)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _paint_boxes(axes: Axes, boxes: Sequence[Box], fills: Sequence[str], line: str) -> None:
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

"""A circuit as a grid: layers upwards, heads beside MLP paths; one layout, drawn in reports and by `vitfx.show`."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from passes.plan import DeletionPlan
from vitfx.circuits.circuit import BOUND, EMBED, Circuit, Writer
from vitfx.circuits.view import place, read_sublayers, reads_stream, strength, structurally_alive, writer_scores
from vitfx.support.svg import drawing, element

ROW = 22
LABELS, TOP, _GAP = 58, 22, 14
"""Room for the layers' names, for the headings, and between heads and paths."""
NARROW, _WIDE = 172, 900
"""How wide a block of heads or paths is in a report, and at most in a picture of its own."""
_CELL = 30
_NARROWEST = 5.3
"""Narrower cells are drawn together with their neighbours."""
_LETTER = 6
LIGHT = 0.65
"""Above this shade what is written into a cell is white."""
_DECADES = 3
_PARTS = {"a": ("attention", "head"), "m": ("MLP", "MLP path")}
"""What a sublayer is called, and a part of it."""


@dataclass(frozen=True)
class Cell:
    """A head or an MLP path, or several that are too narrow to be drawn apart."""

    name: str  #: the writer's, of several the first one's
    title: str  #: shown to a pointer that rests on it
    weight: float  #: its share of the row's width
    shade: float  #: from 0, hollow, to 1
    label: str = ""  #: written into it
    dead: bool = False  #: crossed out
    x: float = 0.0
    y: float = 0.0
    width: float = 0.0

    @property
    def labelled(self) -> bool:
        """Whether its label is drawn: it fits, and no cross stands there."""
        return bool(self.label) and not self.dead and self.width >= _LETTER * len(self.label)


@dataclass(frozen=True)
class Grid:
    """Cells with their places; the height of each is `ROW`."""

    cells: tuple[Cell, ...]
    layers: tuple[tuple[int, float], ...]  #: number and y of each, the last one on top
    block: float  #: how wide all heads of a layer are, and all its paths
    alt: str  #: what it shows, in words

    @property
    def headings(self) -> tuple[tuple[str, float], ...]:
        """What stands above the blocks, and its x."""
        return ("attention heads", LABELS), ("MLP paths", LABELS + self.block + _GAP)

    @property
    def width(self) -> float:
        return LABELS + 2 * self.block + _GAP

    @property
    def height(self) -> float:
        return TOP + ROW * len(self.layers)

    def elements(self) -> list[Markup]:
        """SVG, in the colours of the page or picture that it stands in."""
        parts = [element("text", heading, x=x, y=14, class_="soft") for heading, x in self.headings]
        parts += [element("text", f"layer {layer}", x=0, y=y + 14, class_="soft") for layer, y in self.layers]
        for cell in self.cells:
            title = element("title", cell.title)
            box = {"x": cell.x, "y": cell.y, "width": cell.width, "height": ROW - 4, "rx": 2}
            parts.append(element("rect", title, class_="hollow", **box))
            if cell.shade > 0:
                parts.append(element("rect", title, class_="heat", **box, fill_opacity=f"{cell.shade:.3f}"))
            middle, down = cell.x + cell.width / 2, cell.y + ROW / 2 - 2
            ink = "light" if cell.shade > LIGHT else "dark"
            if cell.dead:
                cross = f"M{middle - 3.5:.1f} {down - 3.5:.1f}l7 7m0 -7l-7 7"
                parts.append(element("path", title, class_=f"cross {ink}", d=cross))
            elif cell.labelled:
                parts.append(element("text", cell.label, x=middle, y=down + 3, text_anchor="middle", class_=ink))
        return parts

    def svg(self) -> Markup:
        return drawing(self.width, self.height, self.alt, self.elements())


def dead_cells(circuit: Circuit, plan: DeletionPlan | None) -> frozenset[str]:
    """By the plan, which is what was deleted; by the edges where there is none."""
    writers = _writers(circuit)
    if plan is None:
        return frozenset(writers) - structurally_alive(circuit)
    deletions = {deletion.name: deletion for deletion in plan.deletions}

    def deleted(writer: Writer) -> bool:
        deletion = deletions.get(writer.sublayer)
        if deletion is None:
            return False
        return deletion.whole or (bool(writer.units) and set(writer.units) <= set(deletion.units))

    return frozenset(name for name, writer in writers.items() if deleted(writer))


def state_grid(circuit: Circuit, dead: frozenset[str]) -> Grid:
    """Filled is what lives, hollow what is dead."""
    heads, paths = (_counted(circuit, kind, dead) for kind in ("a", "m"))
    cells = {
        name: Cell(name, _titled(writer, "dead" if name in dead else "alive"), _weight(writer), float(name not in dead))
        for name, writer in _writers(circuit).items()
    }
    alt = f"Layers upwards: {heads[0]} of {heads[1]} heads and {paths[0]} of {paths[1]} MLP paths are dead (hollow)."
    return _grid(circuit, cells, alt, NARROW)


def score_grid(circuit: Circuit, dead: frozenset[str] = frozenset(), *, labelled: bool = False) -> Grid:
    """The higher its score, the fuller a cell.

    dead: those that are crossed out.
    labelled: cells are as wide as their names need, which stand in them, where that is not too wide.
    """
    writers, scores, bounds = _writers(circuit), writer_scores(circuit), bound_writers(circuit)
    most = max((scores[name] for name in writers), default=0.0)
    best = max(writers, key=scores.__getitem__, default="none")

    def cell(name: str, writer: Writer) -> Cell:
        score, sign = scores[name], "≥ " if name in bounds else ""
        shade = max(0.0, 1 + math.log10(score / most) / _DECADES) if score > 0 else 0.0
        label = sign.strip() + (name.partition(".")[2] or name) if labelled else ""
        return Cell(name, _titled(writer, f"{sign}{score:.3g}"), _weight(writer), shade, label, name in dead)

    alt = f"Heat map of scores by layer, layers upwards; {best} has the greatest, {most:.3g}."
    longest = max((len(sublayer.cells) for sublayer in read_sublayers(circuit)), default=1)
    block = min(max(longest * _CELL, NARROW), _WIDE) if labelled else NARROW
    return _grid(circuit, {name: cell(name, writer) for name, writer in writers.items()}, alt, block)


def has_scores(circuit: Circuit) -> bool:
    """Some kept part is known to be worth something. A cut for a goal knows only what its dead were worth."""
    kept = [decision for decision in circuit.decisions if decision.kept and decision.edge.writer.sublayer != EMBED]
    return any(strength(decision.score) > 0 for decision in kept)


def has_costs(circuit: Circuit) -> bool:
    """A cut for a goal that deleted something which was worth something."""
    return circuit.settings.get("method") == "goal" and any(
        not decision.kept and strength(decision.score) > 0 for decision in circuit.decisions
    )


def bound_writers(circuit: Circuit) -> frozenset[str]:
    """On the block and the head graph, the kept writers whose score is a bound."""
    if not reads_stream(circuit):
        return frozenset()
    return frozenset(
        decision.edge.writer.name for decision in circuit.decisions if decision.basis == BOUND and decision.kept
    )


def _writers(circuit: Circuit) -> Mapping[str, Writer]:
    writers = (decision.edge.writer for decision in circuit.decisions)
    return {writer.name: writer for writer in writers if writer.sublayer != EMBED}


def _titled(writer: Writer, told: str) -> str:
    """What a pointer that rests on the cell is shown: which layer's part it is, its name, and what is to be said."""
    layer, kind = place(writer.sublayer)
    whole, part = _PARTS[kind]
    return f"layer {layer}, {whole if writer.index is None else f'{part} {writer.index}'} ({writer.name}): {told}"


def _weight(writer: Writer) -> int:
    return max(len(writer.units), 1)


def _counted(circuit: Circuit, kind: str, dead: frozenset[str]) -> tuple[int, int]:
    cells = [cell for sublayer in read_sublayers(circuit) if sublayer.kind == kind for cell in sublayer.cells]
    return sum(cell in dead for cell in cells), len(cells)


def _grid(circuit: Circuit, cells: Mapping[str, Cell], alt: str, block: float) -> Grid:
    sublayers = read_sublayers(circuit)
    layers = sorted({sublayer.layer for sublayer in sublayers}, reverse=True)
    rows = {layer: float(TOP + ROW * row) for row, layer in enumerate(layers)}
    grid = Grid((), tuple(rows.items()), block, alt)
    starts = {kind: x for kind, (_, x) in zip("am", grid.headings, strict=True)}
    placed = [
        cell
        for sublayer in sublayers
        for cell in _placed(
            [cells[name] for name in sublayer.cells], starts[sublayer.kind], rows[sublayer.layer] + 2, block
        )
    ]
    return replace(grid, cells=tuple(placed))


def _placed(cells: Sequence[Cell], x: float, y: float, block: float) -> Iterator[Cell]:
    """Side by side; where they are too many to be seen, one for several."""
    size = -(-len(cells) // int(block / _NARROWEST))
    total = sum(cell.weight for cell in cells)
    for start in range(0, len(cells), size):
        group = cells[start : start + size]
        first, weight = group[0], sum(cell.weight for cell in group)
        width = block * weight / total
        if len(group) > 1:
            title, shade = f"{first.title} … {group[-1].title}", sum(cell.shade for cell in group) / len(group)
            first = Cell(first.name, title, weight, shade, dead=all(cell.dead for cell in group))
        yield replace(first, x=x + 1, y=y, width=max(width - 2, 0.5))
        x += width

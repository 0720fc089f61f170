"""A circuit on the page: layers upwards, heads beside MLP paths; what died, and how much each was worth."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from passes.plan import DeletionPlan
from vitfx.circuits.circuit import EMBED, Circuit, Writer
from vitfx.circuits.view import Sublayer, read_sublayers, strength, structurally_alive, writer_scores
from vitfx.reports.charts import svg
from vitfx.reports.page import text

_LABELS, _BLOCK, _GAP, _ROW, _TOP = 58, 172, 14, 22, 22
_MOST_CELLS = 32
_DECADES = 3


@dataclass(frozen=True)
class Cell:
    """weight: its share of the row's width. shade: 0, hollow, to 1."""

    title: str
    weight: float
    shade: float


def dead_cells(circuit: Circuit, plan: DeletionPlan | None) -> frozenset[str]:
    """By the plan, which is what was deleted; by the edges where there is none."""
    writers = _writers(circuit)
    if plan is None:
        return frozenset(writers) - structurally_alive(circuit)
    gone = {one.name: one for one in plan.deletions}

    def deleted(writer: Writer) -> bool:
        deletion = gone.get(writer.sublayer)
        if deletion is None:
            return False
        return deletion.whole or (bool(writer.units) and set(writer.units) <= set(deletion.units))

    return frozenset(name for name, writer in writers.items() if deleted(writer))


def state_grid(circuit: Circuit, dead: frozenset[str]) -> str:
    """Filled is what lives, hollow what died."""
    heads, paths = (_counted(circuit, kind, dead) for kind in ("a", "m"))
    return _grid(
        circuit,
        lambda name: 0.0 if name in dead else 1.0,
        lambda name: f"{name}: {'dead' if name in dead else 'alive'}",
        f"Layers upwards: {heads[0]} of {heads[1]} heads and {paths[0]} of {paths[1]} MLP paths are dead (hollow).",
    )


def has_scores(circuit: Circuit) -> bool:
    """Some kept part is known to be worth something. A cut for a goal knows of its dead alone."""
    return any(one.kept and one.edge.writer.sublayer != EMBED and strength(one.score) > 0 for one in circuit.decisions)


def has_costs(circuit: Circuit) -> bool:
    """A cut for a goal that deleted something which was worth something."""
    return circuit.settings.get("method") == "goal" and any(
        not one.kept and strength(one.score) > 0 for one in circuit.decisions
    )


def score_grid(circuit: Circuit) -> str:
    """The stronger, the fuller the colour."""
    scores = writer_scores(circuit)
    most = max((scores.get(name, 0.0) for name in _writers(circuit)), default=0.0)
    best = max(_writers(circuit), key=lambda name: scores.get(name, 0.0), default="none")

    def shade(name: str) -> float:
        score = scores.get(name, 0.0)
        return max(0.0, 1 + math.log10(score / most) / _DECADES) if score > 0 else 0.0

    alt = f"Heat map of scores by layer, layers upwards; {best} has the greatest, {most:.3g}."
    return _grid(circuit, shade, lambda name: f"{name}: {scores.get(name, 0.0):.3g}", alt)


def _writers(circuit: Circuit) -> Mapping[str, Writer]:
    return {one.edge.writer.name: one.edge.writer for one in circuit.decisions if one.edge.writer.sublayer != EMBED}


def _counted(circuit: Circuit, kind: str, dead: frozenset[str]) -> tuple[int, int]:
    cells = [cell for one in read_sublayers(circuit) if one.kind == kind for cell in one.cells]
    return sum(cell in dead for cell in cells), len(cells)


def _grid(circuit: Circuit, shade: Callable[[str], float], title: Callable[[str], str], alt: str) -> str:
    sublayers, writers = read_sublayers(circuit), _writers(circuit)
    layers = sorted({one.layer for one in sublayers}, reverse=True)
    second = _LABELS + _BLOCK + _GAP
    parts = [
        f'<text x="{_LABELS}" y="14" class="soft">attention heads</text>',
        f'<text x="{second}" y="14" class="soft">MLP paths</text>',
    ]
    for row, layer in enumerate(layers):
        y = _TOP + row * _ROW
        parts.append(f'<text x="0" y="{y + 14}" class="soft">layer {layer}</text>')
        for one in sublayers:
            if one.layer == layer:
                cells = _cells(one, writers, shade, title)
                parts += _row(cells, _LABELS if one.kind == "a" else second, y)
    return svg(second + _BLOCK, _TOP + len(layers) * _ROW, alt, parts)


def _cells(
    sublayer: Sublayer, writers: Mapping[str, Writer], shade: Callable[[str], float], title: Callable[[str], str]
) -> list[Cell]:
    """One a head or path; where these are too many to be seen, one for several."""
    cells = [Cell(title(name), max(len(writers[name].units), 1), shade(name)) for name in sublayer.cells]
    size = -(-len(cells) // _MOST_CELLS)
    groups = [cells[start : start + size] for start in range(0, len(cells), size)] if size > 1 else [[c] for c in cells]
    return [
        Cell(
            group[0].title if len(group) == 1 else f"{group[0].title} … {group[-1].title}",
            sum(one.weight for one in group),
            sum(one.shade for one in group) / len(group),
        )
        for group in groups
    ]


def _row(cells: Sequence[Cell], x: float, y: float) -> list[str]:
    total = sum(one.weight for one in cells)
    parts = []
    for one in cells:
        width = _BLOCK * one.weight / total
        box = f'x="{x + 1:.1f}" y="{y + 2}" width="{max(width - 2, 0.5):.1f}" height="{_ROW - 4}" rx="2"'
        told = f"<title>{text(one.title)}</title>"
        parts.append(f'<rect class="hollow" {box}>{told}</rect>')
        if one.shade > 0:
            parts.append(f'<rect {box} fill="var(--heat)" fill-opacity="{one.shade:.3f}">{told}</rect>')
        x += width
    return parts

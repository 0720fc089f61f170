"""The picture of a circuit: its grid of scores by layer, and for edge and qkv graphs its strongest edges beside it."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from markupsafe import Markup

from vitfx.circuits.circuit import BOUND, EMBED, Circuit
from vitfx.circuits.grid import Grid, score_grid
from vitfx.circuits.picture_panels import HEAT, INK, SOFT, Panel, edges_panel, grid_panel, layers_panel
from vitfx.circuits.view import (
    Sublayer,
    live_edges,
    read_sublayers,
    reads_stream,
    score_unit,
    structurally_alive,
    writer_scores,
)
from vitfx.graph.kinds import words_of
from vitfx.support.pictures import figure_bytes
from vitfx.support.svg import drawing, element

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES = (".svg", ".png")
_DPI = 144
# Inches.
_MARGIN, _GAP, _TOP, _BOTTOM, _TITLE = 0.35, 0.35, 0.95, 1.0, 0.4
_NARROWEST, _WIDTH = 4.5, 10.5
# Pixels. No variables: not every program that shows SVG knows them.
_EDGE, _LEAST, _LINE = 24, 720, 18
_LETTER, _TITLE_LETTER = 5.8, 9.2
"""Mean widths."""
_SHEET = f"""text {{ font: 12px sans-serif; fill: {INK}; }} .title {{ font-size: 16px; font-weight: bold; }}
.soft {{ fill: {SOFT}; font-size: 11px; }} .dark, .light {{ font-size: 9px; }} .light {{ fill: #ffffff; }}
.heat {{ fill: {HEAT}; }} .hollow {{ fill: none; stroke: #cfd5dc; }} .cross {{ fill: none; stroke-width: 1.2; }}
.cross.dark {{ stroke: {INK}; }} .cross.light {{ stroke: #ffffff; }}"""


def picture_bytes(circuit: Circuit, suffix: str, edges: int) -> bytes:
    """An SVG or PNG file, the same for the same circuit and the same matplotlib.

    The SVG of a block or head graph needs no matplotlib. edges: at most so many are drawn, the strongest of those that
    live. Raises UserError where matplotlib is missing, or the circuit has sublayers that can't be placed.
    """
    sublayers, alive = read_sublayers(circuit), structurally_alive(circuit)
    cells = {cell for sublayer in sublayers for cell in sublayer.cells}
    grid = score_grid(circuit, frozenset(cells - alive), labelled=True)
    texts = _title(circuit), _facts(circuit, len(cells - alive), len(cells)), _caption(circuit, grid)
    if reads_stream(circuit) and suffix == ".svg":
        return _grid_svg(grid, *texts).encode()

    def draw() -> Figure:
        if reads_stream(circuit):
            return _compose(grid_panel(grid, "score of each edge", left=0.0), (), texts)
        left, *right = _edge_panels(circuit, sublayers, alive, grid, edges)
        return _compose(left, right, texts)

    return figure_bytes(draw, suffix, dpi=_DPI, grid=False)


def _edge_panels(
    circuit: Circuit, sublayers: Sequence[Sublayer], alive: frozenset[str], grid: Grid, edges: int
) -> list[Panel]:
    live = live_edges(circuit, alive)
    drawn = live[:edges]
    return [
        edges_panel(
            sublayers, alive, drawn, f"the {len(drawn):,} strongest of {len(live):,} live kept edges, running upwards"
        ),
        grid_panel(grid, "scores added over a writer's kept edges", left=0.65),
        layers_panel(sublayers, live),
    ]


def _grid_svg(grid: Grid, title: str, facts: str, caption: str) -> str:
    width = max(grid.width + 2 * _EDGE, _LEAST)
    letters = int((width - 2 * _EDGE) / _LETTER)
    lines = [("title", line) for line in textwrap.wrap(title, int((width - 2 * _EDGE) / _TITLE_LETTER))]
    lines += [("soft", line) for line in textwrap.wrap(facts, letters)]
    under = [("soft", line) for part in caption.splitlines() for line in textwrap.wrap(part, letters)]
    top = _EDGE + _LINE * len(lines) + 8
    bottom = top + grid.height + _LINE
    height = bottom + _LINE * len(under)

    def texts(rows: Sequence[tuple[str, str]], y: float) -> list[Markup]:
        return [element("text", text, x=_EDGE, y=y + _LINE * row, class_=name) for row, (name, text) in enumerate(rows)]

    parts = [
        element("style", Markup(_SHEET)),
        element("rect", width="100%", height="100%", fill="#ffffff"),
        *texts(lines, _EDGE),
        element("g", Markup("").join(grid.elements()), transform=f"translate({_EDGE} {top})"),
        *texts(under, bottom),
    ]
    svg = drawing(width, height, grid.alt, parts, own_file=True)
    return f'<?xml version="1.0" encoding="utf-8"?>\n{svg}\n'


def _compose(left: Panel, right: Sequence[Panel], texts: tuple[str, str, str]) -> Figure:
    """One panel beside a column of others, all from the same line down; title and facts above, the caption below."""
    from matplotlib.figure import Figure

    column = max(left.left + left.width + left.right, _NARROWEST)
    beside = max((panel.left + panel.width + panel.right for panel in right), default=0.0)
    middle = max(_TITLE + left.height + left.below, sum(_TITLE + panel.height + panel.below for panel in right))
    width, height = max(_MARGIN + column + _GAP + beside + _MARGIN, _WIDTH), _TOP + middle + _BOTTOM
    figure = Figure(figsize=(width, height), facecolor="white")

    def place(panel: Panel, x: float, top: float) -> None:
        box = ((x + panel.left) / width, (top - _TITLE - panel.height) / height)
        axes = figure.add_axes((*box, panel.width / width, panel.height / height))
        panel.paint(axes)
        axes.set_title(panel.title, fontsize=10, loc="left", pad=8)

    top = _BOTTOM + middle
    place(left, _MARGIN, top)
    for panel in right:
        place(panel, _MARGIN + column + _GAP, top)
        top -= _TITLE + panel.height + panel.below
    title, facts, caption = texts
    figure.text(_MARGIN / width, 1 - 0.35 / height, title, fontsize=13, fontweight="bold", va="center")
    figure.text(_MARGIN / width, 1 - 0.65 / height, facts, fontsize=9, va="center")
    figure.text(_MARGIN / width, 0.2 / height, caption, fontsize=8.5, color="#444444", va="bottom")
    return figure


def _title(circuit: Circuit) -> str:
    known = circuit.settings
    parts = [f"{known.get('method', 'circuit')}"]
    if known.get("remove") is not None:
        parts.append(f"{known['remove']:g} to remove")
    elif known.get("goal") is not None:
        parts.append(f"{known['goal']} {known.get('value')}")
    elif known.get("tau") is not None:
        parts.append(f"τ = {known['tau']:g}" if isinstance(known["tau"], int | float) else f"τ = {known['tau']}")
    if "granularity" in known:
        parts.append(f"{known['granularity']} graph")
    kept, words = len(circuit.kept), words_of(known)
    return "  ·  ".join(
        [*parts, words.amount(f"{circuit.kl:.4g}"), f"{kept:,} of {len(circuit.decisions):,} edges kept"]
    )


def _facts(circuit: Circuit, dead: int, cells: int) -> str:
    known = circuit.settings
    parts = [f"{dead} of {cells} cells dead"]
    parts += [f"{known[name]} {name}" for name in ("ablation", "corruption") if name in known]
    parts += [f"{name} {known[name]}" for name in ("samples", "seed") if name in known]
    parts += [f"{name} {_short(circuit.origins, name)}" for name in ("model", "vitfx") if name in circuit.origins]
    return "  ·  ".join(parts)


def _short(origins: Mapping[str, str], name: str) -> str:
    """A fingerprint's first digits tell files apart."""
    value = str(origins[name])
    return value if len(value) <= 16 else value[:12]


def _caption(circuit: Circuit, grid: Grid) -> str:
    kept = [decision for decision in circuit.decisions if decision.kept]
    bounds = sum(decision.basis == BOUND for decision in kept)
    embedding = f"; the embedding, which has no cell, has {writer_scores(circuit).get(EMBED, 0.0):.3g}"
    shown = "Colours are" if reads_stream(circuit) else "Colours and widths are"
    lines = [
        f"Score: {score_unit(circuit)}. {shown} logarithmic, over three decades at most.",
        f"{grid.alt.removesuffix('.')}{embedding}.",
    ]
    if bounds:
        sign = "≥: " if reads_stream(circuit) else ""
        lines.append(
            f"{sign}{bounds:,} of {len(kept):,} kept scores are bounds: the edge's score is at least this much."
        )
    lines.append("× is dead: no kept way leads from the image through it to the logits, by the edges alone.")
    return "\n".join(lines)

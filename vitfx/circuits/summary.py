"""A circuit in numbers, as tables for a console."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vitfx.circuits.circuit import ATTRIBUTED, BOUND, Circuit, Decision
from vitfx.circuits.view import layer_of, live_edges, read_sublayers, score_unit, strength, structurally_alive

DETAILS = ("calibration", "stability")
_MOST_DETAILS = 24


@dataclass(frozen=True)
class LayerRow:
    """heads, paths, edges: (kept, all). Heads and paths count as kept while they are structurally alive; edges are
    those of the layer's writers. share: of the circuit's kept score, 0..1. spent: what the removed edges cost, in nats
    an image; None where scores are attributions."""

    layer: int | str
    heads: tuple[int, int]
    paths: tuple[int, int]
    edges: tuple[int, int]
    share: float
    spent: float | None


def layer_rows(circuit: Circuit) -> list[LayerRow]:
    """The embedding, the layers, and "total"."""
    alive = structurally_alive(circuit)
    cells = {
        (one.layer, one.kind): (sum(cell in alive for cell in one.cells), len(one.cells))
        for one in read_sublayers(circuit)
    }
    by_layer: dict[int | str, list[Decision]] = {"embed": []}
    by_layer |= {layer: [] for layer, _ in sorted(cells)}
    for decision in circuit.decisions:
        by_layer[layer_of(decision.edge.writer.sublayer)].append(decision)
    all_kept = sum(strength(one.score) for one in circuit.decisions if one.kept)
    measured = all(one.basis != ATTRIBUTED for one in circuit.decisions if not one.kept)

    def row(layer: int | str, heads: tuple[int, int], paths: tuple[int, int], own: Sequence[Decision]) -> LayerRow:
        kept = [one for one in own if one.kept]
        share = sum(strength(one.score) for one in kept) / all_kept if all_kept else 0.0
        spent = sum(one.score for one in own if not one.kept) if measured else None
        return LayerRow(layer, heads, paths, (len(kept), len(own)), share, spent)

    none = (0, 0)
    rows = [
        row(layer, cells.get((layer, "a"), none) if isinstance(layer, int) else none,
            cells.get((layer, "m"), none) if isinstance(layer, int) else none, own)
        for layer, own in by_layer.items()
    ]  # fmt: skip
    heads, paths = (_added(counts for (_, kind), counts in cells.items() if kind == one) for one in "am")
    return [*rows, row("total", heads, paths, circuit.decisions)]


def _added(counts: Iterator[tuple[int, int]]) -> tuple[int, int]:
    found = list(counts)
    return sum(kept for kept, _ in found), sum(number for _, number in found)


def summary(circuit: Circuit, top: int) -> Group:
    """top: how many of the strongest live edges are listed. Raises UserError where a sublayer can't be placed."""
    parts: list[RenderableType] = [
        Text(f"KL of the circuit: {circuit.kl:.4g} nats an image"),
        Text(f"score: {score_unit(circuit)}"),
        _layers(circuit),
    ]
    if top:
        live = live_edges(circuit, structurally_alive(circuit))
        parts += [
            Text(f"the strongest {min(top, len(live)):,} of {len(live):,} live kept edges"),
            _strongest(live[:top]),
        ]
    for name in DETAILS:
        if details := circuit.details.get(name):
            parts += [Text(name), _details(details)]
    return Group(*parts)


def _layers(circuit: Circuit) -> Table:
    whole = circuit.settings.get("granularity") == "block"
    table = Table()
    rows = layer_rows(circuit)
    titles = ["layer", "attention" if whole else "heads", "MLP" if whole else "paths", "edges", "share of kept score"]
    if rows[-1].spent is not None:
        titles.append("KL spent")
    for title in titles:
        table.add_column(title, justify="right")
    for row in rows:
        if row.layer == "total":
            table.add_section()
        cells = [f"{kept:,}/{number:,}" if number else "" for kept, number in (row.heads, row.paths, row.edges)]
        spent = [] if row.spent is None else [f"{row.spent:.4f}"]
        table.add_row(str(row.layer), *cells, f"{row.share:.1%}", *spent)
    return table


def _strongest(decisions: Sequence[Decision]) -> Table:
    table = Table()
    table.add_column("edge")
    for title in ("score", "basis"):
        table.add_column(title, justify="right")
    for one in decisions:
        table.add_row(Text(one.edge.name), f"{'≥ ' if one.basis == BOUND else ''}{one.score:.4g}", Text(one.basis))
    return table


def _details(details: Any) -> Table:
    """Whatever a method says of itself, nested as it likes; long lists are cut, saying so."""
    table = Table("", "", show_header=False)
    leaves = list(_leaves(details))
    for key, value in islice(leaves, _MOST_DETAILS):
        table.add_row(Text(key), Text(f"{value:.4g}" if isinstance(value, float) else str(value)))
    if len(leaves) > _MOST_DETAILS:
        table.add_row(Text(f"… and {len(leaves) - _MOST_DETAILS:,} more in the file"), "")
    return table


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(inner, f"{key} {name}".strip())
    elif isinstance(value, list | tuple) and any(isinstance(one, Mapping | list | tuple) for one in value):
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{key} {index}".strip())
    else:
        yield key, value

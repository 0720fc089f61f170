"""A circuit in numbers, as tables for a console."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from vitfx.circuits.circuit import ATTRIBUTED, BOUND, LEARNED, Circuit, Decision
from vitfx.circuits.details import Abstention
from vitfx.circuits.view import layer_of, live_edges, read_sublayers, score_unit, strength, structurally_alive
from vitfx.graph.kinds import KindWords, words_of
from vitfx.support.tables import Table
from vitfx.support.text import percent

DETAILS = ("calibration", "stability", "halves")
_MOST_DETAILS = 24


@dataclass(frozen=True)
class LayerRow:
    """heads, paths, edges: how many are kept, and how many there are."""

    layer: int | str
    heads: tuple[int, int]  #: kept while they are structurally alive
    paths: tuple[int, int]  #: kept while they are structurally alive
    edges: tuple[int, int]  #: of the layer's writers
    share: float  #: of the circuit's kept score, 0..1
    spent: float | None  #: what the removed edges cost, in nats an image; None where scores are no costs


def layer_rows(circuit: Circuit) -> list[LayerRow]:
    """The embedding, the layers, and "total"."""
    alive = structurally_alive(circuit)
    cells = {
        (sublayer.layer, sublayer.kind): (sum(cell in alive for cell in sublayer.cells), len(sublayer.cells))
        for sublayer in read_sublayers(circuit)
    }
    by_layer: dict[int | str, list[Decision]] = {"embed": []}
    by_layer |= {layer: [] for layer, _ in sorted(cells)}
    for decision in circuit.decisions:
        by_layer[layer_of(decision.edge.writer.sublayer)].append(decision)
    all_kept = sum(strength(decision.score) for decision in circuit.decisions if decision.kept)
    measured = all(decision.basis not in (ATTRIBUTED, LEARNED) for decision in circuit.decisions if not decision.kept)

    def row(layer: int | str, heads: tuple[int, int], paths: tuple[int, int], own: Sequence[Decision]) -> LayerRow:
        kept = [decision for decision in own if decision.kept]
        share = sum(strength(decision.score) for decision in kept) / all_kept if all_kept else 0.0
        spent = sum(decision.score for decision in own if not decision.kept) if measured else None
        return LayerRow(layer, heads, paths, (len(kept), len(own)), share, spent)

    none = (0, 0)
    rows = [
        row(layer, cells.get((layer, "a"), none) if isinstance(layer, int) else none,
            cells.get((layer, "m"), none) if isinstance(layer, int) else none, own)
        for layer, own in by_layer.items()
    ]  # fmt: skip
    heads, paths = (_added(counts for (_, kind), counts in cells.items() if kind == wanted) for wanted in "am")
    return [*rows, row("total", heads, paths, circuit.decisions)]


def _added(counts: Iterator[tuple[int, int]]) -> tuple[int, int]:
    pairs = list(counts)
    return sum(kept for kept, _ in pairs), sum(number for _, number in pairs)


def summary(circuit: Circuit, top: int) -> Group:
    """top: how many of the strongest live edges are listed. Raises UserError where a sublayer can't be placed."""
    words = words_of(circuit.settings)
    parts: list[RenderableType] = [
        Text(f"{words.divergence} of the circuit: {circuit.kl:.4g} {words.an_image}"),
        Text(f"score: {score_unit(circuit)}"),
        _layers(circuit),
    ]
    if top:
        live = live_edges(circuit, structurally_alive(circuit))
        parts.append(_strongest(live[:top], f"the strongest {min(top, len(live)):,} of {len(live):,} live kept edges"))
    parts += [_details(details, name) for name in DETAILS if (details := circuit.details.get(name))]
    if abstention := circuit.details.get("abstention"):
        parts.append(_abstention(abstention, words))
    return Group(*parts)


def _abstention(compared: Mapping[str, Abstention], words: KindWords) -> Table:
    """What keeping the edges that halves do not agree on is worth, on held-out images."""
    first = next(iter(compared.values()))
    labelled = first["abstaining"]["accuracy"] is not None
    rows = []
    for name, of in compared.items():
        both = (of["abstaining"], of["removing"])
        shares = (both[0]["whole_accuracy"], *(each["accuracy"] for each in both)) if labelled else ()
        rows.append([name, *(f"{each['kl']:.4g}" for each in both), *map(percent, shares)])
    columns = ["images", words.divergence, "without"]
    return Table(
        [*columns, *([f"{words.metric}, model", "circuit", "without"] if labelled else [])],
        rows,
        f"{first['abstaining']['images']:,} held-out images: with and without the edges kept for want of agreement",
    )


def _layers(circuit: Circuit) -> Table:
    whole = circuit.settings.get("granularity") == "block"
    rows = layer_rows(circuit)
    columns = ["layer", "attention" if whole else "heads", "MLP" if whole else "paths", "edges", "share of kept score"]
    measured = rows[-1].spent is not None
    cells = [
        [
            str(row.layer),
            *(f"{kept:,}/{number:,}" if number else "" for kept, number in (row.heads, row.paths, row.edges)),
            f"{row.share:.1%}",
            *([] if row.spent is None else [f"{row.spent:.4f}"]),
        ]
        for row in rows
    ]
    groups = [row.layer == "total" for row in rows]
    return Table([*columns, "KL spent"] if measured else columns, cells, left=(), groups=groups)


def _strongest(decisions: Sequence[Decision], title: str) -> Table:
    rows = [
        (decision.edge.name, f"{'≥ ' if decision.basis == BOUND else ''}{decision.score:.4g}", decision.basis)
        for decision in decisions
    ]
    return Table(("edge", "score", "basis"), rows, title)


def _details(details: Any, title: str) -> Table:
    """Whatever a method says of itself, nested as it likes; long lists are cut, saying so."""
    leaves = list(_leaves(details))
    rows = [(key, f"{value:.4g}" if isinstance(value, float) else str(value)) for key, value in leaves[:_MOST_DETAILS]]
    if len(leaves) > _MOST_DETAILS:
        rows.append((f"… and {len(leaves) - _MOST_DETAILS:,} more in the file", ""))
    return Table(("", ""), rows, title, left=(0, 1))


def _leaves(value: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _leaves(inner, f"{key} {name}".strip())
    elif isinstance(value, list | tuple) and any(isinstance(inner, Mapping | list | tuple) for inner in value):
        for index, inner in enumerate(value):
            yield from _leaves(inner, f"{key} {index}".strip())
    else:
        yield key, value

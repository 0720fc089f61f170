"""What there is to see in a circuit: its sublayers, which cells are structurally alive, which edges matter most.

All of it is read from the circuit alone, without its model. A cell is a head, an MLP path, or on the block graph a
whole sublayer, and has its writer's name. Unrecognised sublayers are in no circuit and leave a gap in the layers.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from vitfx.circuits.circuit import ATTRIBUTED, EMBED, LEARNED, LOGITS, STREAM, Circuit, Decision, Edge, Reader, Writer
from vitfx.graph.kinds import words_of
from vitfx.support.errors import UserError


@dataclass(frozen=True)
class Sublayer:
    """An attention or an MLP that writes."""

    name: str
    layer: int  #: counted from 0
    kind: str  #: "a" or "m"
    cells: tuple[str, ...]  #: its writers' names, in their order


def place(sublayer: str) -> tuple[int, str]:
    """ "a3" -> (3, "a"), the order of the stream. Raises UserError for what is no sublayer's name."""
    match = re.fullmatch(r"([am])(\d+)", sublayer)
    if match is None:
        raise UserError(f"the circuit names a sublayer {sublayer!r}: give a circuit whose sublayers are a0, m0, a1, …")
    return int(match[2]), match[1]


def reads_stream(circuit: Circuit) -> bool:
    """The block and the head graph, where an edge stands for its writer."""
    return all(decision.edge.reader.sublayer == STREAM for decision in circuit.decisions)


def read_sublayers(circuit: Circuit) -> tuple[Sublayer, ...]:
    """The sublayers that write, in the order of the stream. Raises UserError where one can't be placed."""
    writers: dict[tuple[int, str], dict[str, Writer]] = defaultdict(dict)
    for decision in circuit.decisions:
        writer, reader = decision.edge.writer, decision.edge.reader
        if writer.sublayer != EMBED:
            writers[place(writer.sublayer)][writer.name] = writer
        if reader.sublayer not in (LOGITS, STREAM):
            place(reader.sublayer)
    return tuple(
        Sublayer(f"{kind}{layer}", layer, kind, tuple(sorted(cells, key=lambda name: cells[name].index or 0)))
        for (layer, kind), cells in sorted(writers.items())
    )


def structurally_alive(circuit: Circuit) -> frozenset[str]:
    """The cells (and "embed") on some kept way from the image to the logits.

    Structural: edges alone decide. That a head whose values are all gone is constant, whatever its queries read, takes
    the model to know, and is left to the plan.
    """
    kept = circuit.kept
    if reads_stream(circuit):
        writers = frozenset(edge.writer.name for edge in kept)
        return writers if EMBED in writers else frozenset()
    cells = {sublayer.name: sublayer.cells for sublayer in read_sublayers(circuit)}
    forward: dict[str, set[str]] = defaultdict(set)
    backward: dict[str, set[str]] = defaultdict(set)
    for edge in kept:
        for target in _cells_behind(edge.reader, cells):
            forward[edge.writer.name].add(target)
            backward[target].add(edge.writer.name)
    return (_reached(EMBED, forward) & _reached(LOGITS, backward)) - {LOGITS}


def _cells_behind(reader: Reader, cells: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """What writes as a function of what this reader sees: a head itself, all paths of an MLP."""
    if reader.sublayer == LOGITS:
        return (LOGITS,)
    own = cells.get(reader.sublayer, ())
    return own if reader.head is None else tuple(cell for cell in own if cell == f"{reader.sublayer}.h{reader.head}")


def _reached(start: str, steps: Mapping[str, Iterable[str]]) -> frozenset[str]:
    reached, waiting = {start}, [start]
    while waiting:
        new = set(steps.get(waiting.pop(), ())) - reached
        reached |= new
        waiting += new
    return frozenset(reached)


def live_edges(circuit: Circuit, alive: frozenset[str]) -> tuple[Decision, ...]:
    """The kept edges between what is alive, strongest first, then by name."""
    cells = {sublayer.name: sublayer.cells for sublayer in read_sublayers(circuit)}

    def lives(edge: Edge) -> bool:
        if edge.writer.name not in alive:
            return False
        if edge.reader.sublayer in (LOGITS, STREAM):
            return True
        return any(cell in alive for cell in _cells_behind(edge.reader, cells))

    return strongest(decision for decision in circuit.decisions if decision.kept and lives(decision.edge))


def strongest(decisions: Iterable[Decision]) -> tuple[Decision, ...]:
    return tuple(sorted(decisions, key=lambda decision: (-strength(decision.score), decision.edge.name)))


def strength(score: float) -> float:
    """The score, and zero for one that is negative or not finite."""
    return score if score > 0 and math.isfinite(score) else 0.0


def writer_scores(circuit: Circuit) -> dict[str, float]:
    """Of every writer, strengths added over its kept edges; on the block and the head graph the score of its one edge,
    kept or removed."""
    one_edge = reads_stream(circuit)
    scores: dict[str, float] = defaultdict(float)
    for decision in circuit.decisions:
        scores[decision.edge.writer.name] += strength(decision.score) if decision.kept or one_edge else 0.0
    return dict(scores)


def layer_sums(decisions: Iterable[Decision]) -> dict[tuple[int | str, int | str], tuple[float, int]]:
    """(writer's layer or "embed", reader's layer or "logits") -> strengths added, number of edges."""
    sums: dict[tuple[int | str, int | str], tuple[float, int]] = {}
    for decision in decisions:
        key = (layer_of(decision.edge.writer.sublayer), layer_of(decision.edge.reader.sublayer))
        total, count = sums.get(key, (0.0, 0))
        sums[key] = (total + strength(decision.score), count + 1)
    return sums


def layer_of(sublayer: str) -> int | str:
    """A sublayer's layer; the embedding, the stream and the logits go by their names."""
    return sublayer if sublayer in (EMBED, LOGITS, STREAM) else place(sublayer)[0]


def score_unit(circuit: Circuit) -> str:
    """What the scores are of: KL divergence where something was ablated, else the method's own."""
    attributed = sum(decision.basis == ATTRIBUTED for decision in circuit.decisions)
    if attributed == len(circuit.decisions):
        return "attribution"
    if any(decision.basis == LEARNED for decision in circuit.decisions):
        return "probability that the trained gate is open"
    words = words_of(circuit.settings)
    name = "KL divergence" if words.divergence == "KL" else words.divergence
    measured = ", ".join(part for part in (f"{name} when removed", words.an_image) if part)
    return f"{measured}; of {attributed:,} edges an attribution" if attributed else measured

"""Circuits by rank: all edges are scored once and the least important removed, whatever that does in combination."""

from __future__ import annotations

from collections.abc import Mapping

from passes.cost import tokens_read_by, unit_flops
from vitfx.circuits.circuit import ATTRIBUTED, EMBED, Decision, Edge
from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.graph.stages import sublayers_of


def below(graph: EdgeGraph, scores: Mapping[str, float], tau: float) -> list[Decision]:
    """Removes the edges that score less than τ, in the score's own unit. scores: by the edge's name."""
    return [_decision(edge, scores, kept=not scores[edge.name] < tau) for edge in _ranked(graph, scores)]


def least(graph: EdgeGraph, scores: Mapping[str, float], share: float, tokens: int, flops: int) -> list[Decision]:
    """Removes the least important edges until a share is gone.

    On the block and the head graph it is a share of the model's FLOPs. Edges go by their score per FLOP, least first;
    the one that crosses the line goes too, and the embedding's never. On the other graphs it is a share of the edges.
    tokens: where the stream begins.
    flops: of the model.
    """
    if not graph.reads_stream:
        ranked = _ranked(graph, scores)
        removed = round(share * len(ranked))
        return [_decision(edge, scores, kept=index >= removed) for index, edge in enumerate(ranked)]
    cost = {edge: _flops(graph, edge, tokens) for edge in graph.edges()}
    prunable = [edge for edge in graph.edges() if edge.writer.sublayer != EMBED]
    prunable.sort(key=lambda edge: scores[edge.name] / cost[edge])
    decisions, saved = [], 0
    for edge in prunable:
        kept = saved >= share * flops
        saved += 0 if kept else cost[edge]
        decisions.append(_decision(edge, scores, kept=kept))
    embeds = [edge for edge in graph.edges() if edge.writer.sublayer == EMBED]
    return decisions + [_decision(edge, scores, kept=True) for edge in embeds]


def removed_by(graph: EdgeGraph, tokens: int, flops: int) -> list[float]:
    """What each edge's removal adds to the share that `remove` asks for, in the order of `graph.edges()`: of the FLOPs
    on the block and the head graph, where the embedding's adds none, and of the edges on the others.

    tokens, flops: as for `least`.
    """
    edges = graph.edges()
    return [_flops(graph, edge, tokens) / flops if graph.reads_stream else 1 / len(edges) for edge in edges]


def _ranked(graph: EdgeGraph, scores: Mapping[str, float]) -> list[Edge]:
    return sorted(graph.edges(), key=lambda edge: scores[edge.name])


def _flops(graph: EdgeGraph, edge: Edge, tokens: int) -> int:
    if edge.writer.sublayer == EMBED:
        return 0
    sublayers, name = sublayers_of(graph.stages), edge.writer.sublayer
    return len(edge.writer.units) * unit_flops(sublayers[name], tokens_read_by(sublayers, tokens)[name])


def _decision(edge: Edge, scores: Mapping[str, float], *, kept: bool) -> Decision:
    return Decision(edge, kept, scores[edge.name], None, ATTRIBUTED)

"""In which order a reader's edges are asked for: Algorithm 1 leaves that open, and greedy removal depends on it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from vitfx.circuits.circuit import Edge, Writer
from vitfx.discovery.basis.protocol import Visit

ORDERS = ("attribution", "reverse", "forward")
"""attribution: the least attributed first. reverse: from the latest writer to the earliest, as the paper's own code has
it. forward: from the earliest."""


def by_attribution(scores: Mapping[str, float], visit: Visit) -> Sequence[Writer]:
    """scores: by the edge's name. Ties stay in the order of the stream."""
    return sorted(visit.writers, key=lambda writer: scores[Edge(writer, visit.reader).name])


def reverse(visit: Visit) -> Sequence[Writer]:
    return tuple(reversed(visit.writers))


def forward(visit: Visit) -> Sequence[Writer]:
    return visit.writers

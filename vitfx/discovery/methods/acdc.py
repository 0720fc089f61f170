"""Automatic Circuit DisCovery, Algorithm 1 of Conmy et al. 2023 (arXiv:2304.14997), on any engine.

Readers are visited from the output backwards. For each edge into a reader, the algorithm asks by how much removing it,
on top of all removed before, raises D_KL(G‖H). If that is less than τ, the edge goes. The paper leaves the order of a
reader's parents open; there are several here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from vitfx.circuits.circuit import BOUND, EXACT, Decision, Edge, Writer
from vitfx.discovery.basis.protocol import Engine, Journal, Limits, Visit

Order = Callable[[Visit], Sequence[Writer]]
"""In which order the algorithm asks about a reader's edges, by their writers."""


def acdc(
    engine: Engine,
    order: Order,
    limits: Limits,
    journal: Journal,
    progress: Callable[[Decision], None] | None = None,
) -> list[Decision]:
    """Decides every edge, as a loop that runs the whole model for each edge would."""
    decisions: list[Decision] = []
    kl = 0.0
    for visit in engine.visits():
        for writer in order(visit):
            edge = Edge(writer, visit.reader)
            known = journal.recall([edge])
            decision = _decide(visit, edge, kl, limits) if known is None else known[0]
            if known is None:
                journal.record([decision])
            if not decision.kept:
                assert decision.kl is not None
                kl = decision.kl
                visit.remove([writer], decision.order)
            decisions.append(decision)
            if progress is not None:
                progress(decision)
    return decisions


def _decide(visit: Visit, edge: Edge, kl: float, limits: Limits) -> Decision:
    if visit.idle:
        return Decision(edge, not limits.allow(kl, kl), 0.0, kl)
    trial = visit.kl_without([edge.writer], partial(limits.allow, kl=kl))
    kept = not limits.allow(trial.kl, kl)
    basis = EXACT if trial.exact else BOUND
    return Decision(edge, kept, trial.kl - kl, trial.kl, basis, order=None if kept else trial.order)


def by_attribution(scores: Mapping[str, float], visit: Visit) -> Sequence[Writer]:
    """The least attributed first; ties stay in the order of the stream. scores: by the edge's name."""
    return sorted(visit.writers, key=lambda writer: scores[Edge(writer, visit.reader).name])


def reverse(visit: Visit) -> Sequence[Writer]:
    return tuple(reversed(visit.writers))


def forward(visit: Visit) -> Sequence[Writer]:
    return visit.writers

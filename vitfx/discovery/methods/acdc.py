"""Automatic Circuit DisCovery, Algorithm 1 of Conmy et al. 2023 (arXiv:2304.14997), on any engine.

Readers are visited from the output backwards; of each edge into one the algorithm asks by how much removing it, on top
of all removed before, raises D_KL(G‖H). Less than τ: the edge goes. The paper leaves the order of a reader's parents
open; `vitfx.discovery.methods.acdc` has several.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from vitfx.circuits.circuit import BOUND, EXACT, Decision, Edge, Writer
from vitfx.discovery.basis.protocol import Engine, Journal, Limits, Visit

Order = Callable[[Visit], Sequence[Writer]]
"""In which order the edges of a reader are asked for."""


def acdc(
    engine: Engine,
    order: Order,
    limits: Limits,
    journal: Journal,
    progress: Callable[[Decision], None] | None = None,
) -> list[Decision]:
    """Decides every edge. The decisions are those of the loop that runs the whole model for each edge."""
    decisions: list[Decision] = []
    kl = 0.0
    for visit in engine.visits():
        for writer in order(visit):
            edge = Edge(writer, visit.reader)
            decision = journal.recall(edge)
            if decision is None:
                decision = _decide(visit, edge, kl, limits)
                journal.record(decision)
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
    """scores: by the edge's name. Ties stay in the order of the stream."""
    return sorted(visit.writers, key=lambda writer: scores[Edge(writer, visit.reader).name])


def reverse(visit: Visit) -> Sequence[Writer]:
    return tuple(reversed(visit.writers))


def forward(visit: Visit) -> Sequence[Writer]:
    return visit.writers

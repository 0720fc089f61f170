"""EAP + ACDC: attribution orders and pre-screens a reader's edges, exact ablation decides where it matters.

Readers are visited as in ACDC, and each edge's removal is predicted anew at the circuit as it stands (see
`vitfx.second_order`). From the least predicted on, edges are removed in groups: a group goes if the exact D_KL(G‖H)
without it rises by so little that no edge's share of the rise, by attribution, reaches τ; else a smaller group is
tried, down to a single edge, which is then ACDC's own question. Edges predicted to cost more than τ are asked one by
one. What is predicted to cost many times τ is kept unasked, and so is the rest once single edges in a row had to be
kept.

Gradients say less of MLPs than of heads, so both have predictions of their own scale: the median of measured by
predicted over edges drawn at random, of some readers one, which are measured first and alone. The calibration that is
reported rests on them too, not on the close cases.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch

from vitfx.circuit import ATTRIBUTED, BOUND, EMBED, EXACT, GROUP, PROBE, Decision, Edge, Writer
from vitfx.edge_graph import STREAM_READER
from vitfx.search import Engine, Journal, Limits, Visit

ABOVE = 4.0
"""An edge predicted to cost more than this many τ is kept unasked."""
PATIENCE = 2
"""After as many single edges in a row that had to be kept, so are those predicted to cost more."""
PROBES = 0.3
"""The share of the readers of which an edge is drawn and measured for the calibration; on the block and the head graph,
which have few, all sublayers."""
_PAIRS = 5


def eap_acdc(
    engine: Engine,
    limits: Limits,
    journal: Journal,
    seed: int,
    progress: Callable[[Decision], None] | None = None,
) -> list[Decision]:
    """Decides every edge. seed: of the edges that are measured for the calibration."""
    decisions: list[Decision] = []
    kl = 0.0
    for visit in engine.visits():
        known = journal.recall_all([Edge(writer, visit.reader) for writer in visit.writers])
        if known is None:
            known = _Reader(visit, limits, kl, _scales(decisions)).decide(seed)
            journal.record_all(known)
        else:
            gone = [one for one in known if not one.kept]
            visit.remove([one.edge.writer for one in gone], gone[-1].order if gone else None)
        for decision in known:
            if not decision.kept:
                assert decision.kl is not None
                kl = decision.kl
            if progress is not None:
                progress(decision)
        decisions += known
    return decisions


def calibration_of(decisions: Sequence[Decision], tau: float) -> dict[str, Any]:
    """How far predictions can be believed: for heads and MLP paths apart, over the edges drawn at random, Spearman's
    rank correlation of predicted and measured, the share of equal decisions at τ, and the scale between the two."""
    report: dict[str, Any] = {}
    scales = _scales(decisions)
    for kind in ("heads", "paths"):
        pairs = _pairs(decisions, kind)
        if len(pairs) < _PAIRS:
            continue
        predicted, measured = torch.tensor(pairs, dtype=torch.float64).T
        same = (predicted * scales[kind] < tau) == (measured < tau)
        report[kind] = {
            "edges": len(pairs),
            "rank_correlation": round(_spearman(predicted, measured), 4),
            "agreement": round(float(same.double().mean()), 4),
            "scale": scales[kind],
        }
    return report


def _kind(writer: Writer) -> str:
    return "heads" if writer.sublayer == EMBED or writer.sublayer.startswith("a") else "paths"


def _pairs(decisions: Sequence[Decision], kind: str) -> list[tuple[float, float]]:
    return [
        (one.attribution, one.score)
        for one in decisions
        if one.basis == PROBE and one.attribution is not None and _kind(one.edge.writer) == kind
    ]


def _scales(decisions: Sequence[Decision]) -> dict[str, float]:
    """Measured by predicted: 1 until enough is known."""
    scales = {}
    for kind in ("heads", "paths"):
        ratios = [score / predicted for predicted, score in _pairs(decisions, kind) if predicted > 0 and score > 0]
        scales[kind] = median(ratios) if len(ratios) >= _PAIRS else 1.0
    return scales


def _spearman(left: torch.Tensor, right: torch.Tensor) -> float:
    ranks = torch.stack([one.argsort().argsort().double() for one in (left, right)])
    return float(torch.corrcoef(ranks)[0, 1])


@dataclass
class _Candidate:
    writer: Writer
    attribution: float
    predicted: float


def _shares(group: Sequence[_Candidate]) -> list[float]:
    """Of a group's rise, by attribution; equal where that says nothing."""
    total = sum(abs(one.attribution) for one in group)
    return [abs(one.attribution) / total if total else 1 / len(group) for one in group]


class _Reader:
    """The edges of one reader."""

    def __init__(self, visit: Visit, limits: Limits, kl: float, scales: Mapping[str, float]) -> None:
        self.visit, self.limits, self.kl, self.scales = visit, limits, kl, scales
        self.decisions: list[Decision] = []

    def decide(self, seed: int) -> list[Decision]:
        if self.visit.idle:
            removes = self.limits.allow(self.kl, self.kl)
            gone = [Decision(Edge(one, self.visit.reader), not removes, 0.0, self.kl) for one in self.visit.writers]
            self.visit.remove(self.visit.writers if removes else [])
            return gone
        values = self.visit.attributions().tolist()
        found = [
            _Candidate(writer, value, value * self.scales[_kind(writer)])
            for writer, value in zip(self.visit.writers, values, strict=True)
        ]
        found.sort(key=lambda one: one.predicted)
        drawn = random.Random(f"{seed} {self.visit.reader.name} {found[0].writer.sublayer}")
        if self.visit.reader == STREAM_READER or drawn.random() < PROBES:
            probe = drawn.choice(found)
            self._ask([probe], probe=True)
            found.remove(probe)
        self._settle(found)
        return self.decisions

    def _settle(self, rest: list[_Candidate]) -> None:
        """The edges predicted to cost less than τ go in as large groups as may; those above are asked one by one."""
        below = sum(one.predicted < self.limits.tau for one in rest)
        self._remove(rest[:below])
        self._question(rest[below:])

    def _remove(self, rest: list[_Candidate]) -> None:
        size = len(rest)
        while rest:
            group = rest[:size]
            excess = self._ask(group)
            if excess is None or len(group) == 1:
                rest, size = rest[size:], 2 * len(group)
            else:
                size = max(1, int(len(group) * min(0.5, 1 / excess)))

    def _question(self, rest: list[_Candidate]) -> None:
        misses = 0
        while rest:
            if misses >= PATIENCE or rest[0].predicted > ABOVE * self.limits.tau:
                self.decisions += [self._decision(one, True, one.predicted, None, ATTRIBUTED) for one in rest]
                return
            misses = 0 if self._ask(rest[:1]) is None else misses + 1
            rest = rest[1:]

    def _ask(self, group: list[_Candidate], *, probe: bool = False) -> float | None:
        """Removes the group if it may go; else how many times too much it costs. A single edge is decided for good."""
        shares = _shares(group)
        most = self.limits.tau / max(shares)

        def allowed(kl: float) -> bool:
            return kl - self.kl < most and kl <= self.limits.max_kl

        trial = self.visit.kl_without([one.writer for one in group], (lambda kl: True) if probe else allowed)
        rise = trial.kl - self.kl
        removes = allowed(trial.kl)
        if len(group) == 1:
            basis = PROBE if probe else EXACT if trial.exact else BOUND
            self.decisions.append(self._decision(group[0], not removes, rise, trial.kl, basis))
        elif removes:
            self.decisions += [
                self._decision(one, False, rise * share, trial.kl, GROUP)
                for one, share in zip(group, shares, strict=True)
            ]
        if not removes:
            return max(rise / most, 2.0)
        self.kl = trial.kl
        self.decisions[-1] = replace(self.decisions[-1], order=trial.order)
        self.visit.remove([one.writer for one in group], trial.order)
        return None

    def _decision(self, one: _Candidate, kept: bool, score: float, kl: float | None, basis: str) -> Decision:
        return Decision(Edge(one.writer, self.visit.reader), kept, score, kl, basis, one.attribution)

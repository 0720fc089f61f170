"""EAP + ACDC: attribution orders and pre-screens a reader's edges, exact ablation decides where it matters.

Readers are visited as in ACDC. What removals of a reader's edges would cost, on top of one another, is forecast at the
circuit as it stands (see `vitfx.forecast`). Edges forecast to cost clearly less than τ are removed as one group, if the
exact D_KL(G‖H) without it confirms that: what it rises beyond the forecast is charged to the edges in proportion to
their forecasts, and no edge may come to τ. If one does, a smaller group is tried, down to a single edge, which is then
ACDC's own question. A group's surprise, good or bad, is charged to the edges that are left as well. Edges expected to
cost about τ or more are asked one by one. What is expected to cost many times τ is kept unasked, and so is the rest
once single edges in a row had to be kept.

Gradients say less of MLPs than of heads, so both have forecasts of their own scale: the median of measured by forecast
over edges drawn at random, of some readers one, which are measured first and alone. The calibration that is reported
rests on them too, not on the close cases.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor

from vitfx.circuit import ATTRIBUTED, BOUND, EMBED, EXACT, GROUP, PROBE, Decision, Edge, Writer
from vitfx.edge_graph import STREAM_READER
from vitfx.search import Engine, Journal, Limits, Trial, Visit

ABOVE = 4.0
"""An edge forecast to cost more than this many τ is kept unasked."""
BELOW = 0.8
"""Only edges forecast to cost less than this many τ go in groups: forecasts are not exact enough for closer calls."""
PATIENCE = 2
"""After as many single edges in a row that had to be kept, so are those forecast to cost more."""
FARTHEST = 2.0
"""A group's trial is broken off only where it costs this many times too much, so that others tell by how much."""
SMALLER = 0.75
"""A group that costs too much is tried again without what is charged too much, and no larger than this share of it:
half of it where it was broken off."""
MISTRUST = 3.0
"""The most that is charged for surprises, in shares of an edge's forecast."""
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


@dataclass(frozen=True)
class _Candidate:
    """An edge of a group. at: of the reader's writers. attribution: what its removal is forecast to cost behind those
    before it; expected: the same, brought to scale and charged with surprises."""

    at: int
    attribution: float
    expected: float


def _shares(group: Sequence[_Candidate]) -> list[float]:
    """Of a surprise: as each edge is expected to change something; equal where none is."""
    total = sum(abs(one.expected) for one in group)
    return [abs(one.expected) / total if total else 1 / len(group) for one in group]


def _most(group: Sequence[_Candidate], tau: float) -> float:
    """How much the group may cost for no edge to be charged τ."""
    rooms = [(tau - one.expected) / share for one, share in zip(group, _shares(group), strict=True) if share]
    return sum(one.expected for one in group) + min(rooms)


class _Reader:
    """The edges of one reader."""

    def __init__(self, visit: Visit, limits: Limits, kl: float, scales: Mapping[str, float]) -> None:
        self.visit, self.limits, self.kl = visit, limits, kl
        self.scale = torch.tensor([scales[_kind(one)] for one in visit.writers], dtype=torch.float64)
        self.charge = 0.0
        self.gone: list[int] = []
        self.decisions: list[Decision] = []

    def decide(self, seed: int) -> list[Decision]:
        writers = self.visit.writers
        if self.visit.idle:
            removes = self.limits.allow(self.kl, self.kl)
            gone = [Decision(Edge(one, self.visit.reader), not removes, 0.0, self.kl) for one in writers]
            self.visit.remove(writers if removes else [])
            return gone
        self.forecast = self.visit.forecast()
        rest = list(range(len(writers)))
        drawn = random.Random(f"{seed} {self.visit.reader.name} {writers[0].sublayer}")
        if self.visit.reader == STREAM_READER or drawn.random() < PROBES:
            probe = drawn.choice(rest)
            self._ask(self._candidates([probe])[0], probe=True)
            rest.remove(probe)
        self._question(self._remove(rest))
        return self.decisions

    def _expected(self, attributions: Tensor) -> Tensor:
        scaled = attributions * self.scale
        return scaled + self.charge * scaled.abs()

    def _candidates(self, rest: Sequence[int]) -> list[_Candidate]:
        """Each by itself, on top of what is gone."""
        attributions = self.forecast.after(self.gone)
        expected = self._expected(attributions)
        return [_Candidate(at, float(attributions[at]), float(expected[at])) for at in rest]

    def _cheapest(self, rest: Sequence[int]) -> list[_Candidate]:
        """One edge after the other, each the one expected to cost least behind those before it, up to BELOW."""
        attributions, found, left = self.forecast.after(self.gone), list[_Candidate](), set(rest)
        while left:
            expected = self._expected(attributions)
            at = min(left, key=expected.tolist().__getitem__)
            if expected[at] >= BELOW * self.limits.tau:
                break
            found.append(_Candidate(at, float(attributions[at]), float(expected[at])))
            left.remove(at)
            attributions = attributions + self.forecast.fisher[at]
        return found

    def _remove(self, rest: list[int]) -> list[int]:
        """Removes what costs clearly less than τ, in as large groups as may; what is left."""
        size = len(rest)
        while group := self._cheapest(rest)[:size]:
            removed, exact = (self._ask(group[0]), True) if len(group) == 1 else self._try(group)
            if removed or len(group) == 1:
                done = {one.at for one in group}
                rest = [at for at in rest if at not in done]
                size = len(rest) if removed else 1
            else:
                size = max(1, int(len(group) * (SMALLER if exact else 0.5)))
        return rest

    def _question(self, rest: list[int]) -> None:
        """Asks for single edges, the cheapest first, until those that are left are surely kept."""
        misses = 0
        while rest:
            found = sorted(self._candidates(rest), key=lambda one: one.expected)
            if misses >= PATIENCE or found[0].expected > ABOVE * self.limits.tau:
                self.decisions += [self._decision(one, True, one.expected, None, ATTRIBUTED) for one in found]
                return
            misses = 0 if self._ask(found[0]) else misses + 1
            rest = [one.at for one in found[1:]]

    def _ask(self, one: _Candidate, *, probe: bool = False) -> bool:
        """ACDC's question; whether the edge is removed."""

        def allowed(kl: float) -> bool:
            return self.limits.allow(kl, self.kl)

        trial = self.visit.kl_without([self.visit.writers[one.at]], (lambda kl: True) if probe else allowed)
        removes = allowed(trial.kl)
        basis = PROBE if probe else EXACT if trial.exact else BOUND
        self.decisions.append(self._decision(one, not removes, trial.kl - self.kl, trial.kl, basis))
        if removes:
            self._settle([one], trial)
        return removes

    def _try(self, group: Sequence[_Candidate]) -> tuple[bool, bool]:
        """Removes the group if no edge is charged τ; whether it is removed, and whether it was measured to the end."""
        expected, most = sum(one.expected for one in group), _most(group, self.limits.tau)

        def going(kl: float) -> bool:
            return kl - self.kl < max(FARTHEST * most, most) and kl <= self.limits.max_kl

        trial = self.visit.kl_without([self.visit.writers[one.at] for one in group], going)
        surprise = trial.kl - self.kl - expected
        removes = trial.exact and trial.kl - self.kl < most and trial.kl <= self.limits.max_kl
        if removes:
            self.decisions += [
                self._decision(one, False, one.expected + surprise * share, trial.kl, GROUP)
                for one, share in zip(group, _shares(group), strict=True)
            ]
            self._settle(group, trial)
        total = sum(abs(one.expected) for one in group)
        if total:
            self.charge = min(max((1 + self.charge) * (1 + surprise / total) - 1, -0.5), MISTRUST)
        return removes, trial.exact

    def _settle(self, group: Sequence[_Candidate], trial: Trial) -> None:
        self.kl = trial.kl
        self.decisions[-1] = replace(self.decisions[-1], order=trial.order)
        self.gone += [one.at for one in group]
        self.visit.remove([self.visit.writers[one.at] for one in group], trial.order)

    def _decision(self, one: _Candidate, kept: bool, score: float, kl: float | None, basis: str) -> Decision:
        writer = self.visit.writers[one.at]
        return Decision(Edge(writer, self.visit.reader), kept, score, kl, basis, one.attribution)

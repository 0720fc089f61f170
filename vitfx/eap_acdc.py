"""EAP + ACDC: attribution orders and pre-screens the edges into a sublayer, exact measurement decides where it matters.

Sublayers are visited as in ACDC, all readers of one at once. What removals would cost, on top of one another, is
forecast at the circuit as it stands (see `vitfx.forecast`). Edges forecast to cost clearly less than τ, the cheapest
first, are taken as one group, without which D_KL(G‖H) is measured and its slopes are taken anew. From the slopes on
both sides follows what each edge costs at its place in the group; that it all adds up to the measured rise shows
whether it can be believed. If it can't, half of the group is tried. Edges that turn out to cost τ or more are left
out, and if there are none or few, the group goes, and from the slopes behind it the next is forecast. Of what is left,
small groups are measured without slopes, and what is expected to cost about τ is asked edge by edge, which is ACDC's
own question. What is expected to cost many times τ is kept unasked, and so is the rest once single edges in a row had
to be kept.

Gradients say less of MLPs than of heads, so both have forecasts of their own scale: the median of measured by forecast
over edges drawn at random, which are measured first and alone. The calibration that is reported rests on them too, not
on the close cases.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vitfx.attribution_calibration import kind_of, scales_of
from vitfx.circuit import ATTRIBUTED, BOUND, EXACT, GROUP, PROBE, Decision
from vitfx.forecast import Forecast, marginals
from vitfx.search import Engine, Journal, Limits, WideVisit

ABOVE = 4.0
"""An edge forecast to cost more than this many τ is kept unasked."""
BELOW = 0.8
"""Only edges forecast to cost less than this many τ go in groups: forecasts are not exact enough for closer calls."""
SLACK = 1.0
"""How far a group's measured rise may lie above its edges' costs, in shares of these, for the costs to be believed."""
FEW = 0.03
"""If no larger share of a group turns out to cost τ, the others are measured without them, from the slopes at hand."""
SAFE = 0.35
"""If more do, the next group is as large as the number of those that cost less than this many τ: without the dear ones
the others' costs change."""
STRIKES = 2
"""An edge that turned out to cost τ in as many groups goes in none."""
SMALLEST = 8
"""A group for which slopes are taken: they cost as much as a few questions. Nor is one worth it for less than a
hundredth of the edges."""
LOOKS = 100
"""The most groups of a sublayer for which slopes are taken."""
PATIENCE = 3
"""After as many single edges in a row that had to be kept, so are those forecast to cost more."""
UNEXPECTED = 0.25
"""As much of that counts one that was expected to cost clearly less than τ."""
PROBES = 2
"""Edges of each sublayer that are measured for the calibration."""


def eap_acdc(
    engine: Engine,
    limits: Limits,
    journal: Journal,
    seed: int,
    progress: Callable[[Decision], None] | None = None,
) -> list[Decision]:
    """Decides every edge. seed: of the edges that are measured for the calibration. progress is told of each decision
    as it is made; the journal of all of a sublayer's at once."""
    decisions: list[Decision] = []
    told = progress or (lambda decision: None)
    kl = 0.0
    for visit in engine.wide_visits():
        known = journal.recall_all([*visit.idle, *visit.edges])
        if known is None:
            known = _Sublayer(visit, limits, kl, scales_of(decisions), told).decide(seed)
            journal.record_all(known)
        else:
            gone = [one for one in known if not one.kept]
            visit.remove([one.edge for one in gone], gone[-1].order if gone else None)
            for decision in known:
                told(decision)
        for decision in known:
            if not decision.kept:
                assert decision.kl is not None
                kl = decision.kl
        decisions += known
    return decisions


@dataclass(frozen=True)
class _Candidate:
    """at: of the sublayer's edges. attribution: what its removal is forecast to cost behind those before it; expected:
    the same, brought to scale and with what is known from a trial that went wrong."""

    at: int
    attribution: float
    expected: float


class _Sublayer:
    """The edges into one sublayer."""

    def __init__(
        self,
        visit: WideVisit,
        limits: Limits,
        kl: float,
        scales: Mapping[str, float],
        told: Callable[[Decision], None],
    ) -> None:
        self.visit, self.limits, self.kl, self.told = visit, limits, kl, told
        self.scale = torch.tensor([scales[kind_of(one.writer)] for one in visit.edges], dtype=torch.float64)
        self.surprise = torch.zeros_like(self.scale)
        self.strikes = torch.zeros(len(self.scale), dtype=torch.int)
        self.decisions: list[Decision] = []
        self.full = False
        """Not even a small group goes without the whole circuit's KL passing its limit."""

    def decide(self, seed: int) -> list[Decision]:
        removes = self.limits.allow(self.kl, self.kl)
        self._record([Decision(one, not removes, 0.0, self.kl) for one in self.visit.idle])
        self.visit.remove(self.visit.idle if removes else [])
        if not self.visit.edges:
            return self.decisions
        self.here = self.visit.forecast()
        self.kl = self.here.kl
        rest = list(range(len(self.visit.edges)))
        first = self.visit.edges[0]
        drawn = random.Random(f"{seed} {first.reader.sublayer} {first.writer.sublayer}")
        for probe in sorted(drawn.sample(rest, min(PROBES, len(rest)))):
            self._ask(self._candidates([probe])[0], probe=True)
            rest.remove(probe)
        self._question(self._remove(rest))
        return self.decisions

    def _expected(self, attributions: Tensor) -> Tensor:
        return attributions * self.scale + self.surprise

    def _candidates(self, rest: Sequence[int]) -> list[_Candidate]:
        """Each by itself, at the circuit as it stands."""
        attributions = self.here.alone()
        expected = self._expected(attributions)
        return [_Candidate(at, float(attributions[at]), float(expected[at])) for at in rest]

    def _cheapest(self, rest: Sequence[int]) -> list[_Candidate]:
        """One edge after the other, each the one expected to cost least behind those before it, up to BELOW."""
        attributions, found = self.here.alone(), list[_Candidate]()
        barred = torch.full_like(attributions, torch.inf)
        barred[list(rest)] = 0
        while True:
            expected = self._expected(attributions) + barred
            at = int(expected.argmin())
            if expected[at] >= BELOW * self.limits.tau:
                return found
            found.append(_Candidate(at, float(attributions[at]), float(expected[at])))
            barred[at] = torch.inf
            attributions = attributions + self.here.fisher[at]

    def _remove(self, rest: list[int]) -> list[int]:
        """Removes what costs clearly less than τ, in as large groups as may; what is left."""
        size, worth = len(rest), max(SMALLEST, len(rest) // 100)
        for _ in range(LOOKS):
            found = self._cheapest([at for at in rest if self.strikes[at] < STRIKES])
            if len(found) < worth:
                break
            group = found[: max(size, SMALLEST)]
            size, removed = self._try(group)
            rest = _without(rest, removed)
            if self.full:
                break
            if not removed and len(group) == SMALLEST:
                # Whatever it was that did not go: others are looked at first from now on.
                self.strikes[[one.at for one in group]] = STRIKES
                size = SMALLEST * SMALLEST
        return rest

    def _try(self, group: list[_Candidate]) -> tuple[int, list[int]]:
        """Removes the group, or all but a few of it, if no edge costs τ. How many to try next, and what is removed."""
        tau, at = self.limits.tau, [one.at for one in group]
        there = self.visit.forecast([self.visit.edges[one] for one in at])
        costs = marginals(at, self.here, there)
        missing = there.kl - self.kl - float(costs.sum())
        if missing > SLACK * float(costs.abs().sum()) + tau or there.kl > self.limits.max_kl:
            self.full = len(group) <= SMALLEST and there.kl > self.limits.max_kl
            return len(group) // 2, []
        costs = self._charged(costs, there.kl)
        dear = costs >= tau
        if not dear.any():
            self._take(group, costs, there)
            return 2 * len(group), at
        forecast = torch.tensor([one.attribution for one in group], dtype=torch.float64) * self.scale[at]
        self.surprise[at] = costs - forecast
        self.strikes[torch.tensor(at)[dear]] += 1
        cheap = costs < BELOW * tau
        kept = [one for one, is_cheap in zip(group, cheap.tolist(), strict=True) if is_cheap]
        chosen = [one.at for one in kept]
        few = dear.sum() <= FEW * len(group)
        if few and kept and self._measure(kept, costs[cheap], there.moved(_without(at, chosen), -1)):
            return 2 * len(kept), chosen
        return int((costs < SAFE * tau).sum()), []

    def _measure(self, group: Sequence[_Candidate], costs: Tensor, behind: Forecast) -> bool:
        """Removes the group if its measured rise leaves each edge below τ. behind: the forecast from then on."""

        def allowed(kl: float) -> bool:
            return bool(self._charged(costs, kl).max() < self.limits.tau) and kl <= self.limits.max_kl

        trial = self.visit.kl_without([self.visit.edges[one.at] for one in group], allowed)
        if not allowed(trial.kl):
            return False
        self._take(group, self._charged(costs, trial.kl), replace(behind, kl=trial.kl, order=trial.order))
        return True

    def _charged(self, costs: Tensor, kl: float) -> Tensor:
        """The costs, brought to add up to the measured rise: what is missing goes to each as it costs."""
        missing, size = kl - self.kl - float(costs.sum()), costs.abs()
        total = float(size.sum())
        return costs + missing * (size / total if total else 1 / len(costs))

    def _take(self, group: Sequence[_Candidate], costs: Tensor, behind: Forecast) -> None:
        """What trials said of the others is half believed from here on: it was of another circuit."""
        self._record(
            [
                self._decision(one, False, cost, behind.kl, GROUP)
                for one, cost in zip(group, costs.tolist(), strict=True)
            ]
        )
        self._settle([one.at for one in group], behind)
        self.surprise /= 2

    def _question(self, rest: list[int]) -> None:
        """Asks for what is left, the cheapest first: of those expected to cost clearly less than τ several at once, of
        the others one by one, until those that are left are surely kept."""
        # As many are asked at once as last went in a row: where half of the edges go, single questions are fewest.
        misses, size, run, tau = 0.0, len(rest), 0, self.limits.tau
        while rest:
            found = self._cheapest(rest)[:size]
            if len(found) > 1:
                expected = torch.tensor([one.expected for one in found], dtype=torch.float64)
                if self._measure(found, expected, self.here.moved([one.at for one in found], 1)):
                    rest = _without(rest, [one.at for one in found])
                    run += len(found)
                    size = max(size, run)
                else:
                    run, size = 0, len(found) // 2
                continue
            singles = sorted(self._candidates(rest), key=lambda one: one.expected)
            one = found[0] if found else singles[0]
            if misses >= PATIENCE or one.expected > ABOVE * tau:
                self._record([self._decision(one, True, one.expected, None, ATTRIBUTED) for one in singles])
                return
            removed = self._ask(one)
            # An edge that was expected to go says little of those that are not.
            misses = 0.0 if removed else misses + (UNEXPECTED if found else 1)
            run = run + 1 if removed else 0
            size = max(1, run)
            rest = _without(rest, [one.at])

    def _ask(self, one: _Candidate, *, probe: bool = False) -> bool:
        """ACDC's question; whether the edge is removed."""

        def allowed(kl: float) -> bool:
            return self.limits.allow(kl, self.kl)

        trial = self.visit.kl_without([self.visit.edges[one.at]], (lambda kl: True) if probe else allowed)
        removes = allowed(trial.kl)
        basis = PROBE if probe else EXACT if trial.exact else BOUND
        self._record([self._decision(one, not removes, trial.kl - self.kl, trial.kl, basis)])
        if removes:
            self._settle([one.at], replace(self.here.moved([one.at], 1), kl=trial.kl, order=trial.order))
        return removes

    def _settle(self, gone: Sequence[int], behind: Forecast) -> None:
        self.here, self.kl = behind, behind.kl
        self.decisions[-1] = replace(self.decisions[-1], order=behind.order)
        self.visit.remove([self.visit.edges[at] for at in gone], behind.order)

    def _record(self, decisions: Sequence[Decision]) -> None:
        self.decisions += decisions
        for decision in decisions:
            self.told(decision)

    def _decision(self, one: _Candidate, kept: bool, score: float, kl: float | None, basis: str) -> Decision:
        return Decision(self.visit.edges[one.at], kept, score, kl, basis, one.attribution)


def _without(some: Sequence[int], gone: Collection[int]) -> list[int]:
    out = set(gone)
    return [one for one in some if one not in out]

"""Which edges into one sublayer go, by forecasts, measured groups and single questions: see
`vitfx.discovery.methods.eap_acdc`."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vitfx.circuits.circuit import ATTRIBUTED, BOUND, EXACT, GROUP, PROBE, Decision, Writer
from vitfx.discovery.basis.forecast import Curvature, Forecast, marginals
from vitfx.discovery.basis.protocol import Limits, Trial, WideVisit
from vitfx.discovery.methods.forecast_accuracy import kind_of

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
WORTH = 0.1
"""Slopes cost as much as many questions: no smaller share of the edges is worth those behind a group."""
LOOKS = 16
"""The most groups of a sublayer for which slopes are taken."""
SMALLEST = 8
"""Nor are fewer edges worth slopes, or new forecasts."""
ROUNDS = 2
"""Of all readers, each from new forecasts."""
LEAST = 3
"""Cheap edges of one reader that are measured together; where fewer are left, they wait for those of the others."""
PATIENCE = 3
"""After as many single edges in a row that had to be kept, so are those forecast to cost more."""
UNEXPECTED = 0.25
"""As much of that counts one that was expected to cost clearly less than τ."""
PROBES = 2
"""Edges of each sublayer that are measured for the calibration."""


@dataclass(frozen=True)
class _Candidate:
    """at: of the sublayer's edges. attribution: what its removal is forecast to cost behind those before it; expected:
    the same, brought to scale and with what is known from a trial that went wrong."""

    at: int
    attribution: float
    expected: float


class SublayerDecision:
    """The edges into one sublayer."""

    def __init__(
        self,
        visit: WideVisit,
        limits: Limits,
        kl: float,
        scales: Mapping[str, float],
        read: Collection[Writer],
        told: Callable[[Decision], None],
    ) -> None:
        """kl: D_KL(G‖H) so far. scales: of the forecasts, for heads and paths. read: writers of which an edge is kept
        already. told: of each decision."""
        self.visit, self.limits, self.kl, self.told = visit, limits, kl, told
        self.scale = torch.tensor([scales[kind_of(one.writer)] for one in visit.edges], dtype=torch.float64)
        self.read = set(read)
        self.decisions: list[Decision] = []
        self.curvature = Curvature(limits.tau)

    def decide(self, seed: int) -> list[Decision]:
        """In the order in which they were made. seed: of the edges that are measured for the calibration."""
        removes = self.limits.allow(self.kl, self.kl)
        self._record([Decision(one, not removes, 0.0, self.kl) for one in self.visit.idle])
        self.visit.remove(self.visit.idle if removes else [])
        if not self.visit.edges:
            return self.decisions
        self._look()
        rest = self._together(self._probe(seed))
        for _ in range(ROUNDS):
            before = len(rest)
            rest = self._reader_by_reader(self._looked(rest))
            if len(rest) == before:
                break
        self._question(self._looked(rest))
        return self.decisions

    def _look(self) -> None:
        self.here, self.stale = self._forecast([]), False
        self.surprise = torch.zeros_like(self.scale)

    def _forecast(self, gone: Sequence[int]) -> Forecast:
        found = self.visit.forecast([self.visit.edges[at] for at in gone])
        return replace(found, curvature=self.curvature.times)

    def _learn(self, at: Sequence[int], trial: Trial) -> None:
        """What a trial says of the curvature; one that was broken off, only where it cost more than it should."""
        cost, (by_slope, by_fisher) = trial.kl - self.kl, self.here.together(at)
        if trial.exact or cost > by_slope + self.here.curvature * by_fisher:
            self.curvature.learn(by_slope, by_fisher, cost)
            self.here = replace(self.here, curvature=self.curvature.times)

    def _looked(self, rest: list[int]) -> list[int]:
        """The same edges, with forecasts at the circuit as it stands if that is worth it."""
        if self.stale and len(rest) >= SMALLEST:
            self._look()
        return rest

    def _probe(self, seed: int) -> list[int]:
        """Measures some edges for the calibration; the others."""
        everything, first = range(len(self.visit.edges)), self.visit.edges[0]
        drawn = random.Random(f"{seed} {first.reader.sublayer} {first.writer.sublayer}")
        probes = sorted(drawn.sample(everything, min(PROBES, len(everything))))
        for probe in probes:
            attribution = float(self.here.alone()[probe])
            self._ask(_Candidate(probe, attribution, attribution * float(self.scale[probe])), probe=True)
        return _without(everything, probes)

    def _cheapest(self, rest: Sequence[int], *, by_cost: bool = False) -> list[_Candidate]:
        """One edge after the other, each the one expected to cost least behind those before it, up to BELOW: first of
        the writers that nobody reads so far, then of the others. by_cost: whosever they are."""
        attributions, found = self.here.alone(), list[_Candidate]()
        is_read = [at for at in rest if by_cost or self.visit.edges[at].writer in self.read]
        for own in (_without(rest, is_read), is_read):
            barred = torch.full_like(attributions, torch.inf)
            barred[own] = 0
            while True:
                expected = self._expected(attributions) + barred
                at = int(expected.argmin())
                if expected[at] >= BELOW * self.limits.tau:
                    break
                found.append(_Candidate(at, float(attributions[at]), float(expected[at])))
                barred[at] = torch.inf
                attributions = attributions + self.here.steeper([at])
        return found

    def _expected(self, attributions: Tensor) -> Tensor:
        return attributions * self.scale + self.surprise

    def _together(self, rest: list[int]) -> list[int]:
        """Removes what costs clearly less than τ whosever it is, in as large groups as may; what is left."""
        size, worth = len(rest), max(SMALLEST, int(WORTH * len(rest)))
        for _ in range(LOOKS):
            group = self._cheapest(rest)[:size]
            if len(group) < worth:
                break
            size, removed = self._try(group)
            rest = _without(rest, removed)
        return rest

    def _try(self, group: list[_Candidate]) -> tuple[int, list[int]]:
        """Removes the group, or all but a few of it, if no edge costs τ. How many to try next, and what is removed."""
        tau, at = self.limits.tau, [one.at for one in group]
        there = self._forecast(at)
        costs = marginals(at, self.here, there)
        missing = there.kl - self.kl - float(costs.sum())
        if missing > SLACK * float(costs.abs().sum()) + tau or there.kl > self.limits.max_kl:
            return len(group) // 2, []
        costs = self._charged(costs, there.kl)
        dear = costs >= tau
        if not dear.any():
            self._take(group, costs, there)
            self.stale = False
            return 2 * len(group), at
        forecast = torch.tensor([one.attribution for one in group], dtype=torch.float64) * self.scale[at]
        self.surprise[at] = costs - forecast
        cheap = costs < BELOW * tau
        kept = [one for one, is_cheap in zip(group, cheap.tolist(), strict=True) if is_cheap]
        chosen = [one.at for one in kept]
        few = dear.sum() <= FEW * len(group)
        if few and kept and self._measure(kept, costs[cheap], lambda: there.moved(_without(at, chosen), -1)):
            return 2 * len(kept), chosen
        return len(group) // 2 if few else int((costs < SAFE * tau).sum()), []

    def _reader_by_reader(self, rest: list[int]) -> list[int]:
        """Removes what is cheap of each reader, half of it at a time, until one half is too dear; what is left."""
        for reader in dict.fromkeys(self.visit.edges[at].reader for at in rest):
            own = [at for at in rest if self.visit.edges[at].reader == reader]
            while len(group := _half(self._cheapest(own))) >= LEAST and self._measured(group):
                own = _without(own, [one.at for one in group])
                rest = _without(rest, [one.at for one in group])
        return rest

    def _measured(self, group: Sequence[_Candidate]) -> bool:
        """Removes the group if that costs what is expected, or little more."""
        expected = torch.tensor([one.expected for one in group], dtype=torch.float64)
        return self._measure(group, expected, lambda: self.here.moved([one.at for one in group], 1))

    def _measure(self, group: Sequence[_Candidate], costs: Tensor, behind: Callable[[], Forecast]) -> bool:
        """Removes the group if its measured rise leaves each edge below τ. behind: the forecast from then on."""

        def allowed(kl: float) -> bool:
            return bool(self._charged(costs, kl).max() < self.limits.tau) and kl <= self.limits.max_kl

        trial = self.visit.kl_without([self.visit.edges[one.at] for one in group], allowed)
        self._learn([one.at for one in group], trial)
        if not allowed(trial.kl):
            return False
        self._take(group, self._charged(costs, trial.kl), replace(behind(), kl=trial.kl, order=trial.order))
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
        misses, size, run = 0.0, len(rest), 0
        while rest:
            group = _half(self._cheapest(rest, by_cost=True))[:size]
            if len(group) > 1:
                if self._measured(group):
                    rest = _without(rest, [one.at for one in group])
                    run += len(group)
                    size = max(size, run)
                else:
                    run, size = 0, len(group) // 2
                continue
            singles = self._singles(rest)
            one = group[0] if group else singles[0]
            if misses >= PATIENCE or one.expected > ABOVE * self.limits.tau:
                self._record([self._decision(one, True, one.expected, None, ATTRIBUTED) for one in singles])
                return
            removed = self._ask(one)
            # An edge that was expected to go says little of those that are not.
            misses = 0.0 if removed else misses + (UNEXPECTED if group else 1)
            run = run + 1 if removed else 0
            size = max(1, run)
            rest = _without(rest, [one.at])

    def _singles(self, rest: Sequence[int]) -> list[_Candidate]:
        """Each by itself, at the circuit as it stands; the one expected to cost least first."""
        attributions = self.here.alone()
        expected = self._expected(attributions)
        found = [_Candidate(at, float(attributions[at]), float(expected[at])) for at in rest]
        return sorted(found, key=lambda one: one.expected)

    def _ask(self, one: _Candidate, *, probe: bool = False) -> bool:
        """ACDC's question; whether the edge is removed."""

        def allowed(kl: float) -> bool:
            return self.limits.allow(kl, self.kl)

        trial = self.visit.kl_without([self.visit.edges[one.at]], (lambda kl: True) if probe else allowed)
        self._learn([one.at], trial)
        removes = allowed(trial.kl)
        basis = PROBE if probe else EXACT if trial.exact else BOUND
        self._record([self._decision(one, not removes, trial.kl - self.kl, trial.kl, basis)])
        if removes:
            self._settle([one.at], replace(self.here.moved([one.at], 1), kl=trial.kl, order=trial.order))
        return removes

    def _settle(self, gone: Sequence[int], behind: Forecast) -> None:
        self.here, self.kl, self.stale = replace(behind, curvature=self.curvature.times), behind.kl, True
        self.decisions[-1] = replace(self.decisions[-1], order=behind.order)
        self.visit.remove([self.visit.edges[at] for at in gone], behind.order)

    def _record(self, decisions: Sequence[Decision]) -> None:
        self.decisions += decisions
        self.read |= {one.edge.writer for one in decisions if one.kept}
        for decision in decisions:
            self.told(decision)

    def _decision(self, one: _Candidate, kept: bool, score: float, kl: float | None, basis: str) -> Decision:
        return Decision(self.visit.edges[one.at], kept, score, kl, basis, one.attribution)


def _without(some: Sequence[int], gone: Collection[int]) -> list[int]:
    out = set(gone)
    return [one for one in some if one not in out]


def _half(found: Sequence[_Candidate]) -> Sequence[_Candidate]:
    """The cheaper half, or one more: as edges go, the others come to cost more than forecast."""
    return found[: (len(found) + 1) // 2]

"""Which edges into one sublayer are removed, by forecasts, measured groups and single trials: see
`vitfx.discovery.methods.eap_acdc`."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from vitfx.circuits.circuit import ATTRIBUTED, BOUND, EXACT, GROUP, PROBE, Decision, Edge, Writer
from vitfx.discovery.basis.forecast import Curvature, Forecast, marginals
from vitfx.discovery.basis.protocol import Limits, Trial, WideVisit
from vitfx.discovery.methods.forecast_accuracy import Kind, kind_of

ABOVE = 4.0  #: An edge forecast to cost more than this many τ is kept unasked.
#: Only edges forecast to cost less than this many τ go in groups: forecasts are too inexact for closer calls.
BELOW = 0.8
#: By how much a group's measured rise may exceed its edges' costs, as a share of these, for the costs to be believed.
SLACK = 1.0
FEW = 0.03  #: If at most this share of a group turns out to cost τ, the others are measured without new slopes.
SAFE = 0.35  #: If more do, all costs are in doubt: the next group has as many edges as cost less than this many τ.
WORTH = 0.1  #: Slopes take as long as many trials: they are not worth it for a smaller share of the edges.
LOOKS = 16  #: The most groups of a sublayer for which slopes are taken.
SMALLEST = 8  #: Nor are slopes, or new forecasts, worth it for fewer edges.
ROUNDS = 2  #: How often all readers are gone through, each time with new forecasts.
LEAST = 3  #: The fewest cheap edges of one reader that are measured together; fewer wait for those of the others.
PATIENCE = 3  #: After this many single edges in a row that had to be kept, those forecast to cost more are kept too.
UNEXPECTED = 0.25  #: As how many of these an edge counts that was forecast to cost clearly less than τ.
PROBES = 2  #: Edges of each sublayer that are measured for the calibration.


@dataclass(frozen=True)
class _Candidate:
    """An edge that may be removed."""

    at: int  #: which of the sublayer's edges
    attribution: float  #: what removing it is forecast to cost, after those before it
    expected: float  #: the same, scaled, and corrected by what failed trials have shown


class SublayerDecision:
    """Decides the edges into one sublayer."""

    def __init__(
        self,
        visit: WideVisit,
        limits: Limits,
        kl: float,
        scales: Mapping[Kind, float],
        read: Collection[Writer],
        report: Callable[[Decision], None],
    ) -> None:
        """kl: D_KL(G‖H) so far. scales: of the forecasts. read: writers of edges that are kept already."""
        self.visit, self.limits, self.kl, self.report = visit, limits, kl, report
        self.scale = torch.tensor([scales[kind_of(edge.writer)] for edge in visit.edges], dtype=torch.float64)
        self.read = set(read)
        self.decisions: list[Decision] = []
        self.curvature = Curvature(limits.tau)

    def decide(self, seed: int) -> list[Decision]:
        """All decisions, in the order in which they were made. seed: of the edges measured for the calibration."""
        removes = self.limits.allow(self.kl, self.kl)
        self._record([Decision(edge, not removes, 0.0, self.kl) for edge in self.visit.idle])
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
        return replace(self.visit.forecast(self._edges(gone)), curvature=self.curvature.times)

    def _edges(self, places: Sequence[int]) -> list[Edge]:
        return [self.visit.edges[at] for at in places]

    def _learn(self, at: Sequence[int], trial: Trial) -> None:
        """Learns the curvature from a trial; from one that ended early, only if it cost more than forecast."""
        cost, (by_slope, by_fisher) = trial.kl - self.kl, self.here.together(at)
        if trial.exact or cost > by_slope + self.here.curvature * by_fisher:
            self.curvature.learn(by_slope, by_fisher, cost)
            self.here = replace(self.here, curvature=self.curvature.times)

    def _looked(self, rest: list[int]) -> list[int]:
        """The same edges, after new forecasts at the circuit as it stands, if these are worth it."""
        if self.stale and len(rest) >= SMALLEST:
            self._look()
        return rest

    def _probe(self, seed: int) -> list[int]:
        """Measures some edges for the calibration, and gives the others."""
        everything, first = range(len(self.visit.edges)), self.visit.edges[0]
        drawn = random.Random(f"{seed} {first.reader.sublayer} {first.writer.sublayer}")
        probes = sorted(drawn.sample(everything, min(PROBES, len(everything))))
        for probe in probes:
            attribution = float(self.here.alone()[probe])
            self._ask(_Candidate(probe, attribution, attribution * float(self.scale[probe])), probe=True)
        return _without(everything, probes)

    def _cheapest(self, rest: Sequence[int], *, by_cost: bool = False) -> list[_Candidate]:
        """The edges expected to cost less than BELOW, each the one that costs least after those before it: first those
        of writers that nobody reads so far, then the others. by_cost: regardless of the writer."""
        attributions, cheapest = self.here.alone(), list[_Candidate]()
        is_read = [at for at in rest if by_cost or self.visit.edges[at].writer in self.read]
        for own in (_without(rest, is_read), is_read):
            barred = torch.full_like(attributions, torch.inf)
            barred[own] = 0
            while True:
                expected = self._expected(attributions) + barred
                at = int(expected.argmin())
                if expected[at] >= BELOW * self.limits.tau:
                    break
                cheapest.append(_Candidate(at, float(attributions[at]), float(expected[at])))
                barred[at] = torch.inf
                attributions = attributions + self.here.steeper([at])
        return cheapest

    def _expected(self, attributions: Tensor) -> Tensor:
        return attributions * self.scale + self.surprise

    def _together(self, rest: list[int]) -> list[int]:
        """Removes what costs clearly less than τ, whichever reader's it is, in groups as large as possible; gives the
        rest."""
        size, worth = len(rest), max(SMALLEST, int(WORTH * len(rest)))
        for _ in range(LOOKS):
            group = self._cheapest(rest)[:size]
            if len(group) < worth:
                break
            size, removed = self._try(group)
            rest = _without(rest, removed)
        return rest

    def _try(self, group: list[_Candidate]) -> tuple[int, list[int]]:
        """Removes the group, or all but a few of its edges, if the removed ones cost less than τ each. Gives how many
        edges to try next, and those that were removed."""
        tau, at = self.limits.tau, _places(group)
        there = self._forecast(at)
        costs = marginals(at, self.here, there)
        missing = there.kl - self.kl - float(costs.sum())
        if missing > SLACK * float(costs.abs().sum()) + tau or there.kl > self.limits.max_kl:
            return len(group) // 2, []
        costs = self._charged(costs, there.kl)
        expensive = costs >= tau
        if not expensive.any():
            self._take(group, costs, there)
            self.stale = False
            return 2 * len(group), at
        forecast = torch.tensor([candidate.attribution for candidate in group], dtype=torch.float64) * self.scale[at]
        self.surprise[at] = costs - forecast
        cheap = costs < BELOW * tau
        chosen = [candidate for candidate, is_cheap in zip(group, cheap.tolist(), strict=True) if is_cheap]
        removed = _places(chosen)
        few = expensive.sum() <= FEW * len(group)
        if (
            few
            and chosen
            and self._remove_if_cheap(chosen, costs[cheap], lambda: there.moved(_without(at, removed), -1))
        ):
            return 2 * len(chosen), removed
        return len(group) // 2 if few else int((costs < SAFE * tau).sum()), []

    def _reader_by_reader(self, rest: list[int]) -> list[int]:
        """Removes each reader's cheap edges, half of them at a time, until a half costs too much; gives the rest."""
        for reader in dict.fromkeys(self.visit.edges[at].reader for at in rest):
            own = [at for at in rest if self.visit.edges[at].reader == reader]
            while len(group := _half(self._cheapest(own))) >= LEAST and self._remove_as_expected(group):
                own = _without(own, _places(group))
                rest = _without(rest, _places(group))
        return rest

    def _remove_as_expected(self, group: Sequence[_Candidate]) -> bool:
        """Removes the group if that costs what is expected, or little more; says whether it did."""
        expected = torch.tensor([candidate.expected for candidate in group], dtype=torch.float64)
        return self._remove_if_cheap(group, expected, lambda: self.here.moved(_places(group), 1))

    def _remove_if_cheap(self, group: Sequence[_Candidate], costs: Tensor, behind: Callable[[], Forecast]) -> bool:
        """Removes the group if each edge's share of the measured rise is below τ; says whether it did. behind: gives
        the forecast from then on."""
        at = _places(group)

        def allowed(kl: float) -> bool:
            return bool(self._charged(costs, kl).max() < self.limits.tau) and kl <= self.limits.max_kl

        trial = self.visit.kl_without(self._edges(at), allowed)
        self._learn(at, trial)
        if not allowed(trial.kl):
            return False
        self._take(group, self._charged(costs, trial.kl), replace(behind(), kl=trial.kl, order=trial.order))
        return True

    def _charged(self, costs: Tensor, kl: float) -> Tensor:
        """The costs, made to add up to the measured rise: each takes a share of what is missing in proportion to it."""
        missing, size = kl - self.kl - float(costs.sum()), costs.abs()
        total = float(size.sum())
        return costs + missing * (size / total if total else 1 / len(costs))

    def _take(self, group: Sequence[_Candidate], costs: Tensor, behind: Forecast) -> None:
        self._record(
            [
                self._decision(candidate, False, cost, behind.kl, GROUP)
                for candidate, cost in zip(group, costs.tolist(), strict=True)
            ]
        )
        self._settle(_places(group), behind)
        # What failed trials showed was another circuit's: from here on it counts half.
        self.surprise /= 2

    def _question(self, rest: list[int]) -> None:
        """Asks about the rest, cheapest first, until those that remain are clearly kept: about several at once if they
        are expected to cost clearly less than τ, about the others one by one."""
        # As many at once as were last removed in a row: if half of the edges go, asking one by one takes fewest trials.
        misses, size, run = 0.0, len(rest), 0
        while rest:
            group = _half(self._cheapest(rest, by_cost=True))[:size]
            if len(group) > 1:
                if self._remove_as_expected(group):
                    rest = _without(rest, _places(group))
                    run += len(group)
                    size = max(size, run)
                else:
                    run, size = 0, len(group) // 2
                continue
            singles = self._singles(rest)
            candidate = group[0] if group else singles[0]
            if misses >= PATIENCE or candidate.expected > ABOVE * self.limits.tau:
                self._record([self._decision(single, True, single.expected, None, ATTRIBUTED) for single in singles])
                return
            removed = self._ask(candidate)
            # An edge that was expected to go says little about those that are not.
            misses = 0.0 if removed else misses + (UNEXPECTED if group else 1)
            run = run + 1 if removed else 0
            size = max(1, run)
            rest = _without(rest, [candidate.at])

    def _singles(self, rest: Sequence[int]) -> list[_Candidate]:
        """Each edge by itself, at the circuit as it stands, the one expected to cost least first."""
        attributions = self.here.alone()
        expected = self._expected(attributions)
        singles = [_Candidate(at, float(attributions[at]), float(expected[at])) for at in rest]
        return sorted(singles, key=lambda candidate: candidate.expected)

    def _ask(self, candidate: _Candidate, *, probe: bool = False) -> bool:
        """Removes the edge if ACDC would; says whether it did."""

        def allowed(kl: float) -> bool:
            return self.limits.allow(kl, self.kl)

        at = [candidate.at]
        trial = self.visit.kl_without(self._edges(at), (lambda kl: True) if probe else allowed)
        self._learn(at, trial)
        removes = allowed(trial.kl)
        basis = PROBE if probe else EXACT if trial.exact else BOUND
        self._record([self._decision(candidate, not removes, trial.kl - self.kl, trial.kl, basis)])
        if removes:
            self._settle(at, replace(self.here.moved(at, 1), kl=trial.kl, order=trial.order))
        return removes

    def _settle(self, gone: Sequence[int], behind: Forecast) -> None:
        """Removes edges that were just recorded. behind: the forecast from here on."""
        self.here, self.kl, self.stale = replace(behind, curvature=self.curvature.times), behind.kl, True
        self.decisions[-1] = replace(self.decisions[-1], order=behind.order)
        self.visit.remove(self._edges(gone), behind.order)

    def _record(self, decisions: Sequence[Decision]) -> None:
        self.decisions += decisions
        self.read |= {decision.edge.writer for decision in decisions if decision.kept}
        for decision in decisions:
            self.report(decision)

    def _decision(self, candidate: _Candidate, kept: bool, score: float, kl: float | None, basis: str) -> Decision:
        return Decision(self.visit.edges[candidate.at], kept, score, kl, basis, candidate.attribution)


def _places(group: Sequence[_Candidate]) -> list[int]:
    return [candidate.at for candidate in group]


def _without(places: Sequence[int], removed: Collection[int]) -> list[int]:
    excluded = set(removed)
    return [at for at in places if at not in excluded]


def _half(cheapest: Sequence[_Candidate]) -> Sequence[_Candidate]:
    """The cheaper half, rounded up: as edges are removed, the others come to cost more than forecast."""
    return cheapest[: (len(cheapest) + 1) // 2]

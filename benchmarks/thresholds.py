"""Methods that decide by a threshold, brought to a given share of FLOPs by searching for τ."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.candidates import Candidate, Workshop
from vitfx.circuits.circuit import Decision
from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.discovery.basis.journal import NoJournal
from vitfx.discovery.basis.protocol import Limits
from vitfx.discovery.methods.acdc import acdc
from vitfx.discovery.methods.eap_acdc import eap_acdc
from vitfx.support.errors import UserError
from vitfx.support.progress import Report

OVERSHOOT = 0.03
"""How far beyond the share a circuit may be before it is trimmed."""
RUNS = 8
"""The most runs of a method that are added for one share."""
_LOW, _HIGH = 3e-4, 3e-2
_NARROW = 1.05


@dataclass(frozen=True)
class Run:
    """What a method found at one threshold. deleted: infinite where nothing of the image is left."""

    tau: float
    deleted: float
    seconds: float
    decisions: Sequence[Decision]

    def summary(self) -> dict[str, float | None]:
        """Ready for JSON, which has no infinity: deleted is None where nothing of the image is left."""
        deleted = self.deleted if math.isfinite(self.deleted) else None
        return {"tau": self.tau, "deleted": deleted, "seconds": self.seconds}

    def to_json(self) -> dict[str, Any]:
        """The summary and every decision, for going on with a search that was stopped."""
        decisions = [[one.edge.name, one.kept, one.score, one.kl, one.basis, one.attribution] for one in self.decisions]
        return {**self.summary(), "decisions": decisions}

    @staticmethod
    def from_json(record: dict[str, Any], graph: EdgeGraph) -> Run:
        """The run that `to_json` wrote. graph: the one that it was run on."""
        edges = {edge.name: edge for edge in graph.edges()}
        decisions = [Decision(edges[name], *measured) for name, *measured in record["decisions"]]
        deleted = math.inf if record["deleted"] is None else record["deleted"]
        return Run(record["tau"], deleted, record["seconds"], decisions)


def at_share(workshop: Workshop, runs: list[Run], run: Callable[[float], Run], share: float) -> tuple[Candidate, int]:
    """A method's circuit for the share, and how many runs were added to those that are known already.

    Between the nearest thresholds on both sides τ is interpolated geometrically, until a run deletes the share and no
    more than OVERSHOOT beyond it, the two are within 5 % of each other, RUNS are added, or the τ was run before (what
    it found was no nearer, as may be where more τ deletes less). The nearest circuit that deletes the share is trimmed
    to it; where there is none, the nearest below is taken.
    """
    added = 0
    while added < RUNS and not _settled(runs, share):
        tau = next_tau(runs, share + OVERSHOOT / 2)
        if any(one.tau == tau for one in runs):
            break
        runs.append(run(tau))
        added += 1
    usable = [one for one in runs if math.isfinite(one.deleted)]
    if not usable:
        raise UserError(f"no τ that was tried leaves anything of the image: leave {share:g} out of --flops")
    above = [one for one in usable if one.deleted >= share]
    best = min(above or usable, key=lambda one: abs(one.deleted - share))
    return workshop.trim(Candidate(share, best.deleted, best.decisions, tau=best.tau)), added


def _settled(runs: Sequence[Run], share: float) -> bool:
    if any(0 <= one.deleted - share <= OVERSHOOT for one in runs):
        return True
    below, above = _bracket(runs, share)
    return below is not None and above is not None and max(above.tau / below.tau, below.tau / above.tau) < _NARROW


def _bracket(runs: Sequence[Run], share: float) -> tuple[Run | None, Run | None]:
    """The nearest runs on both sides of a share; of those that delete alike, the ones whose τ are nearer."""
    below = max((one for one in runs if one.deleted < share), key=lambda one: (one.deleted, one.tau), default=None)
    above = min((one for one in runs if one.deleted >= share), key=lambda one: (one.deleted, one.tau), default=None)
    return below, above


def next_tau(runs: Sequence[Run], share: float) -> float:
    """The τ to try next: between the nearest runs on both sides, or beyond all of them, tenfold at a time."""
    below, above = _bracket(runs, share)
    if below is None and above is None:
        return math.sqrt(_LOW * _HIGH)
    if below is None:
        assert above is not None
        return above.tau / 10
    if above is None:
        return below.tau * 10
    part = 0.5
    if math.isfinite(above.deleted):
        # Neither end is come so near to that the bracket hardly shrinks.
        part = min(max((share - below.deleted) / (above.deleted - below.deleted), 0.25), 0.75)
    return math.exp(math.log(below.tau) + part * (math.log(above.tau) - math.log(below.tau)))


def runner(workshop: Workshop, method: str, report: Report) -> Callable[[float], Run]:
    """τ -> a run of ACDC or EAP + ACDC; ACDC's order is part of its time, and worked out once."""
    subject, settings = workshop.subject, workshop.settings
    begin = time.perf_counter()
    order = subject.order() if method == "acdc" else None
    ordering = time.perf_counter() - begin
    total = len(subject.graph.edges())

    def run(tau: float) -> Run:
        limits, done = Limits(tau), 0

        def progress(decision: Decision) -> None:
            nonlocal done
            done += 1
            report(done, total)

        start = time.perf_counter()
        if order is not None:
            decisions = acdc(subject.engine(), order, limits, NoJournal(), progress)
        else:
            decisions = eap_acdc(subject.engine(), limits, NoJournal(), settings.seed, progress)
        return Run(tau, workshop.deleted(decisions), time.perf_counter() - start + ordering, decisions)

    return run

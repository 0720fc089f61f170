"""Methods that decide by a threshold, brought to a given share of FLOPs by searching for τ."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.candidates import Candidate, Workshop
from benchmarks.subject import Subject
from vitfx.circuits.circuit import Decision
from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.discovery.basis.journal import NoJournal
from vitfx.discovery.basis.protocol import Limits
from vitfx.discovery.methods.acdc import Order, acdc
from vitfx.discovery.methods.eap_acdc import eap_acdc
from vitfx.support.errors import UserError
from vitfx.support.progress import Report

OVERSHOOT = 0.03
"""How far a circuit may overshoot the share before it is trimmed."""
RUNS = 8
"""At most so many runs of a method are added for one share."""
_LOW, _HIGH = 3e-4, 3e-2
_NARROW = 1.05


@dataclass(frozen=True)
class ThresholdRun:
    """What a method found at one threshold."""

    tau: float
    deleted: float  #: share of the FLOPs; infinite where nothing of the image reaches the logits
    seconds: float
    decisions: Sequence[Decision]

    def summary(self) -> dict[str, float | None]:
        """Ready for JSON, which has no infinity: `deleted` is None in its place."""
        deleted = self.deleted if math.isfinite(self.deleted) else None
        return {"tau": self.tau, "deleted": deleted, "seconds": self.seconds}

    def to_json(self) -> dict[str, Any]:
        """The summary and every decision, to resume an interrupted search from."""
        decisions = [[one.edge.name, one.kept, one.score, one.kl, one.basis, one.attribution] for one in self.decisions]
        return {**self.summary(), "decisions": decisions}

    @staticmethod
    def from_json(record: dict[str, Any], graph: EdgeGraph) -> ThresholdRun:
        """The run that `to_json` wrote. graph: the graph that it ran on."""
        edges = {edge.name: edge for edge in graph.edges()}
        decisions = [Decision(edges[name], *measured) for name, *measured in record["decisions"]]
        deleted = math.inf if record["deleted"] is None else record["deleted"]
        return ThresholdRun(record["tau"], deleted, record["seconds"], decisions)


def at_share(
    workshop: Workshop, runs: list[ThresholdRun], run: Callable[[float], ThresholdRun], share: float
) -> tuple[Candidate, int]:
    """A method's circuit for the share, and how many runs were added to the known ones.

    τ is interpolated geometrically between the nearest thresholds on both sides. The search ends when a run deletes the
    share and at most OVERSHOOT more, when the two thresholds are within 5 % of each other, when RUNS were added, or
    when the τ was run before: a larger τ may delete less, and then no run comes nearer. The nearest circuit that
    deletes the share is trimmed to it; where there is none, the nearest below is taken.
    """
    added = 0
    while added < RUNS and not _settled(runs, share):
        tau = next_tau(runs, share + OVERSHOOT / 2)
        if any(known.tau == tau for known in runs):
            break
        runs.append(run(tau))
        added += 1
    usable = [each for each in runs if math.isfinite(each.deleted)]
    if not usable:
        raise UserError(f"every τ that was tried leaves nothing of the image: leave {share:g} out of --flops")
    above = [each for each in usable if each.deleted >= share]
    best = min(above or usable, key=lambda each: abs(each.deleted - share))
    return workshop.trim(Candidate(share, best.deleted, best.decisions, tau=best.tau)), added


def _settled(runs: Sequence[ThresholdRun], share: float) -> bool:
    if any(0 <= run.deleted - share <= OVERSHOOT for run in runs):
        return True
    below, above = _bracket(runs, share)
    return below is not None and above is not None and max(above.tau / below.tau, below.tau / above.tau) < _NARROW


def _bracket(runs: Sequence[ThresholdRun], share: float) -> tuple[ThresholdRun | None, ThresholdRun | None]:
    """The nearest runs on both sides of a share; of runs that delete the same, those whose τ are closer together."""
    below = max((run for run in runs if run.deleted < share), key=lambda run: (run.deleted, run.tau), default=None)
    above = min((run for run in runs if run.deleted >= share), key=lambda run: (run.deleted, run.tau), default=None)
    return below, above


def next_tau(runs: Sequence[ThresholdRun], share: float) -> float:
    """The τ to try next: between the nearest runs on both sides, or beyond all runs by a factor of ten."""
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
        # Not too close to either end, or the bracket would hardly shrink.
        part = min(max((share - below.deleted) / (above.deleted - below.deleted), 0.25), 0.75)
    return math.exp(math.log(below.tau) + part * (math.log(above.tau) - math.log(below.tau)))


def runner(workshop: Workshop, method: str, report: Report) -> Callable[[float], ThresholdRun]:
    """τ -> a run of ACDC or EAP + ACDC. ACDC's order counts towards its time, but is computed once."""
    subject, settings = workshop.subject, workshop.settings
    begin = time.perf_counter()
    order = subject.order() if method == "acdc" else None
    ordering = time.perf_counter() - begin
    total = len(subject.graph.edges())

    def run(tau: float) -> ThresholdRun:
        done = 0

        def progress(decision: Decision) -> None:
            nonlocal done
            done += 1
            report(done, total)

        start = time.perf_counter()
        decisions = decide(subject, order, tau, settings.seed, progress)
        return ThresholdRun(tau, workshop.deleted(decisions), time.perf_counter() - start + ordering, decisions)

    return run


def decide(
    subject: Subject, order: Order | None, tau: float, seed: int, progress: Callable[[Decision], None]
) -> list[Decision]:
    """One run: of ACDC in this order, or of EAP + ACDC without one. seed: of EAP + ACDC's probes."""
    engine, limits = subject.engine(), Limits(tau)
    if order is not None:
        return acdc(engine, order, limits, NoJournal(), progress)
    return eap_acdc(engine, limits, NoJournal(), seed, progress)

"""A sample of a discovery's edges: the naive loop is asked about each in the very state in which it was decided.

Edges are drawn systematically: in the order of the decisions, at equal distances from a random start. Every edge is
equally likely, and all depths are covered.
"""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from benchmarks.naive import Naive
from vitfx.circuits.circuit import EXACT, GROUP, LOGITS, PROBE, STREAM, Decision, Edge, Reader, Writer
from vitfx.discovery.basis.protocol import Engine, Limits, Visit
from vitfx.support.errors import UserError
from vitfx.support.progress import Report


@dataclass(frozen=True)
class Answer:
    """What one loop says of one edge."""

    seconds: float | None  #: None where the edge was decided together with others
    kl: float | None  #: D_KL(G‖H) without the edge
    kept: bool  #: Algorithm 1's decision by that
    exact: bool = True  #: otherwise `kl` is a lower bound


@dataclass(frozen=True)
class Sample:
    """One edge in the state in which it was decided."""

    position: int
    decision: Decision  #: under test
    removed: int  #: how many edges were gone
    kl: float  #: D_KL(G‖H) without them
    idle: bool  #: no kept path led from the reader to the logits
    engine: Answer | None  #: the fast engine's, None where it was not asked about this edge alone
    naive: Answer
    plain_seconds: float  #: one forward pass of the model
    remove_seconds: float | None = None  #: what the engine needs to remove the edge

    def to_json(self) -> dict[str, Any]:
        decision = self.decision
        basis = {name: getattr(decision, name) for name in ("kept", "basis", "score", "kl", "attribution")}
        record = {"position": self.position, "edge": decision.edge.name, "decision": basis}
        rest = ("removed", "kl", "idle", "plain_seconds", "remove_seconds")
        record |= {name: getattr(self, name) for name in rest}
        return record | {"engine": asdict(self.engine) if self.engine else None, "naive": asdict(self.naive)}


def stratum(edge: Edge) -> str:
    """The sublayer that the algorithm visits when it decides the edge."""
    return edge.writer.sublayer if edge.reader.sublayer == STREAM else edge.reader.sublayer


def draw(total: int, count: int, seed: int) -> set[int]:
    """`count` of the positions 0..total-1, one from each of as many equal spans; all where there are no more."""
    if count >= total:
        return set(range(total))
    start = random.Random(seed).random()
    return {int((span + start) * total / count) for span in range(count)}


@dataclass
class _State:
    """The circuit as decided so far."""

    naive: Naive
    removed: list[Edge] = field(default_factory=list)
    last: Decision | None = None
    alive: set[Writer] = field(default_factory=set)

    def idle(self, reader: Reader) -> bool:
        """No kept path leads from the reader to the logits."""
        if reader.sublayer in (STREAM, LOGITS):
            return False
        own = (writer for writer in self.alive if writer.sublayer == reader.sublayer)
        return not any(reader.head in (None, writer.index) for writer in own)

    def kl(self, decision: Decision) -> float:
        """D_KL(G‖H) before this decision. For a group removed at once, only the KL of the whole group was measured."""
        last = self.last
        if last is None:
            return 0.0
        together = (last.basis, last.kl) == (GROUP, decision.kl)
        if last.kl is None or (together and decision.basis == GROUP):
            return self.naive.kl(self.removed)
        return last.kl

    def add(self, decision: Decision) -> None:
        if not decision.kept:
            self.removed.append(decision.edge)
            self.last = decision
        elif not self.idle(decision.edge.reader):
            self.alive.add(decision.edge.writer)

    def ask(self, decision: Decision, kl: float, limits: Limits) -> tuple[Answer, float]:
        """The naive loop's answer, and the seconds of a forward pass of the model right after it."""
        seconds, new = self.naive.timed(lambda: self.naive.kl([*self.removed, decision.edge]))
        plain, _ = self.naive.timed(self.naive.plain)
        return Answer(seconds, new, not limits.allow(new, kl)), plain


class LiveSampler:
    """Receives each decision while the method runs, and asks the naive loop in between, off the method's clock.

    together: the method decides several edges at a time, so that one edge's seconds mean nothing.
    """

    def __init__(self, naive: Naive, chosen: set[int], limits: Limits, report: Report, *, together: bool) -> None:
        self.chosen, self.limits, self.report, self.together = chosen, limits, report, together
        self.state, self.samples = _State(naive), list[Sample]()
        self.position, self.total, self.seconds = 0, len(naive.graph.edges()), 0.0
        self.resumed = time.perf_counter()

    def __call__(self, decision: Decision) -> None:
        elapsed = self.pause()
        if self.position in self.chosen:
            self.samples.append(self._sample(decision, elapsed))
        self.state.add(decision)
        self.position += 1
        self.report(self.position, self.total)
        self.resumed = time.perf_counter()

    def pause(self) -> float:
        """Stops the method's clock. Returns the seconds since it started."""
        elapsed = time.perf_counter() - self.resumed
        self.seconds += elapsed
        return elapsed

    def _sample(self, decision: Decision, elapsed: float) -> Sample:
        kl = self.state.kl(decision)
        engine = None
        if not self.together:
            engine = Answer(elapsed, decision.kl, decision.kept, decision.basis in (EXACT, PROBE))
        naive, plain = self.state.ask(decision, kl, self.limits)
        idle = self.state.idle(decision.edge.reader)
        return Sample(self.position, decision, len(self.state.removed), kl, idle, engine, naive, plain)


@dataclass(frozen=True)
class Walk:
    """A circuit's decisions, replayed."""

    samples: list[Sample]
    visit_seconds: float  #: the engine's between the readers' edges and before their first, over the whole walk
    edges: Mapping[str, int]  #: how many each sublayer decides, in the order of the visits


def walk(
    engine: Engine, naive: Naive, decisions: Sequence[Decision], chosen: set[int], limits: Limits, report: Report
) -> Walk:
    """Replays all decisions reader by reader, and asks the engine and the naive loop in turn about the chosen ones.

    A reader's edges are taken in the order of `decisions`. Raises UserError where those are not of this graph's edges.
    """
    walked = _Walker(naive, chosen, limits)
    visits = iter(engine.visits())
    by_reader: dict[Reader, list[Decision]] = {}
    for decision in decisions:
        by_reader.setdefault(decision.edge.reader, []).append(decision)
    seconds, start = 0.0, 0
    edges: Counter[str] = Counter()
    while True:
        spent, visit = naive.timed(lambda: next(visits, None))
        seconds += spent
        if visit is None:
            return Walk(walked.samples, seconds, edges)
        writers = set(visit.writers)
        own = [decision for decision in by_reader.get(visit.reader, []) if decision.edge.writer in writers]
        if len(own) != len(writers):
            raise UserError(f"--circuit does not decide all edges of {visit.reader.name}: give one of this model")
        if not visit.idle:
            # The first question about a head or an MLP sets up what serves all of its edges, sampled or not.
            seconds += naive.timed(partial(_touch, visit))[0]
        walked.visit(visit, own, start)
        edges.update(stratum(decision.edge) for decision in own)
        start += len(own)
        report(start, len(decisions))


def _touch(visit: Visit) -> None:
    """Asks a question that is broken off at once."""
    visit.kl_without(visit.writers[:1], lambda kl: False)


class _Walker:
    def __init__(self, naive: Naive, chosen: set[int], limits: Limits) -> None:
        self.naive, self.chosen, self.limits = naive, chosen, limits
        self.state, self.samples = _State(naive), list[Sample]()

    def visit(self, visit: Visit, decisions: Sequence[Decision], start: int) -> None:
        waiting: list[Decision] = []
        for position, decision in enumerate(decisions, start):
            if position not in self.chosen:
                waiting.append(decision)
                self.state.add(decision)
                continue
            visit.remove([gone.edge.writer for gone in waiting if not gone.kept])
            waiting = []
            self.samples.append(self._ask(visit, decision, position))
            self.state.add(decision)
        visit.remove([gone.edge.writer for gone in waiting if not gone.kept])

    def _ask(self, visit: Visit, decision: Decision, position: int) -> Sample:
        # The circuit's own method measured KL in the order of its decisions, not of the readers.
        writer, kl = decision.edge.writer, self.naive.kl(self.state.removed)
        engine = Answer(0.0, kl, not self.limits.allow(kl, kl))
        if not visit.idle:
            seconds, trial = self.naive.timed(
                lambda: visit.kl_without([writer], lambda new: self.limits.allow(new, kl))
            )
            engine = Answer(seconds, trial.kl, not self.limits.allow(trial.kl, kl), trial.exact)
        naive, plain = self.state.ask(decision, kl, self.limits)
        removing = None if decision.kept else self.naive.timed(lambda: visit.remove([writer]))[0]
        removed = len(self.state.removed)
        return Sample(position, decision, removed, kl, visit.idle, engine, naive, plain, removing)

"""A sample of a discovery's edges, each asked of the naive loop at the very state at which it was decided.

Edges are drawn systematically: in the order of the decisions, at equal distances from a start drawn at random. Every
edge is as likely as every other, and all depths are covered.
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
    """seconds: None where the edge was decided along with others. kl: D_KL(G‖H) without the edge; where not exact, at
    least this much. kept: Algorithm 1's decision by it."""

    seconds: float | None
    kl: float | None
    kept: bool
    exact: bool = True


@dataclass(frozen=True)
class Sample:
    """One edge at the state in which it was decided.

    removed: how many edges were gone; kl: D_KL(G‖H) without them. decision: what is under test. idle: no kept way led
    from the reader to the logits. engine: the fast engine's answer, None where it was not asked about this edge alone.
    plain_seconds: one forward pass of the model. remove_seconds: the engine's, to settle that the edge is gone.
    """

    position: int
    decision: Decision
    removed: int
    kl: float
    idle: bool
    engine: Answer | None
    naive: Answer
    plain_seconds: float
    remove_seconds: float | None = None

    def to_json(self) -> dict[str, Any]:
        decision = self.decision
        basis = {name: getattr(decision, name) for name in ("kept", "basis", "score", "kl", "attribution")}
        record = {"position": self.position, "edge": decision.edge.name, "decision": basis}
        rest = ("removed", "kl", "idle", "plain_seconds", "remove_seconds")
        record |= {name: getattr(self, name) for name in rest}
        return record | {"engine": asdict(self.engine) if self.engine else None, "naive": asdict(self.naive)}


def stratum(edge: Edge) -> str:
    """The sublayer at which the algorithm stands when it decides the edge."""
    return edge.writer.sublayer if edge.reader.sublayer == STREAM else edge.reader.sublayer


def draw(total: int, count: int, seed: int) -> set[int]:
    """`count` of the positions 0..total-1, one of each of as many equal spans; all where there are no more."""
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
        """No kept way leads from the reader to the logits."""
        if reader.sublayer in (STREAM, LOGITS):
            return False
        own = (one for one in self.alive if one.sublayer == reader.sublayer)
        return not any(reader.head in (None, one.index) for one in own)

    def kl(self, decision: Decision) -> float:
        """D_KL(G‖H) before this decision. Of a group that went at once, only the KL of the whole was measured."""
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
        """The naive loop's answer, and the seconds of a forward pass of the model right behind it."""
        seconds, new = self.naive.timed(lambda: self.naive.kl([*self.removed, decision.edge]))
        plain, _ = self.naive.timed(self.naive.plain)
        return Answer(seconds, new, not limits.allow(new, kl)), plain


class LiveSampler:
    """Told of each decision while the method is at work, it asks the naive loop in between, off the method's clock.

    together: the method decides several edges at a time, and one edge's seconds mean nothing.
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
        """Stops the method's clock; the seconds since it was started."""
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
    """visit_seconds: spent by the engine between the readers' edges and before their first, over the whole walk.
    edges: how many each sublayer decides, in the order in which they are visited."""

    samples: list[Sample]
    visit_seconds: float
    edges: Mapping[str, int]


def walk(
    engine: Engine, naive: Naive, decisions: Sequence[Decision], chosen: set[int], limits: Limits, report: Report
) -> Walk:
    """Takes all decisions as they are, reader by reader, and asks the engine and the naive loop about the chosen ones
    in turn. The edges of a reader are taken in the order of `decisions`.

    Raises UserError where the decisions are not those of this graph's edges.
    """
    walked = _Walker(naive, chosen, limits)
    visits = iter(engine.visits())
    by_reader: dict[Reader, list[Decision]] = {}
    for one in decisions:
        by_reader.setdefault(one.edge.reader, []).append(one)
    seconds, start = 0.0, 0
    edges: Counter[str] = Counter()
    while True:
        spent, visit = naive.timed(lambda: next(visits, None))
        seconds += spent
        if visit is None:
            return Walk(walked.samples, seconds, edges)
        writers = set(visit.writers)
        own = [one for one in by_reader.get(visit.reader, []) if one.edge.writer in writers]
        if len(own) != len(writers):
            raise UserError(f"--circuit does not decide all edges of {visit.reader.name}: give one of this model")
        if not visit.idle:
            # What the first question of a head or an MLP sets up serves all of its edges, sampled or not.
            seconds += naive.timed(partial(_touch, visit))[0]
        walked.visit(visit, own, start)
        edges.update(stratum(one.edge) for one in own)
        start += len(own)
        report(start, len(decisions))


def _touch(visit: Visit) -> None:
    """A question that is broken off at once."""
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
            visit.remove([one.edge.writer for one in waiting if not one.kept])
            waiting = []
            self.samples.append(self._ask(visit, decision, position))
            self.state.add(decision)
        visit.remove([one.edge.writer for one in waiting if not one.kept])

    def _ask(self, visit: Visit, decision: Decision, position: int) -> Sample:
        # What the circuit's own method measured was of the circuit in the order of its decisions, not of the readers.
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

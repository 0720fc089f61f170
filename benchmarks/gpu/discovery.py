"""Step 2: circuits found on the device, the CPU's decisions beside them, and how many times faster they were found.

The demo's circuit is found whole on both. Of the ViT-S's, which takes a CPU minutes, the CPU decides a sample: it goes
the device's way, taking over its decisions, and asks for every so many-th edge (eap-acdc: sublayer) itself. What the
time left does not allow stays out, and the record says how much was compared.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping, Sequence
from functools import partial

import torch

from benchmarks.gpu.context import Context, Figures
from benchmarks.gpu.models import DEMO, SMALL, Subject
from benchmarks.gpu.timing import TimeUp
from vitfx.circuits.circuit import EXACT, Decision, Edge
from vitfx.discovery.basis.settings import Settings
from vitfx.discovery.run import discover, origins
from vitfx.support.devices import synchronize
from vitfx.support.progress import Report

_TAU = {(DEMO, "head"): 1e-3, (DEMO, "qkv"): 1e-3, (SMALL, "head"): 5e-2, (SMALL, "qkv"): 1e-3}
"""At which part of the edges is removed and part is kept."""
_RUNS = ((DEMO, "acdc", "head"), (SMALL, "acdc", "head"), (DEMO, "eap-acdc", "qkv"), (SMALL, "eap-acdc", "qkv"))
_DEVICE_SHARE = 0.5
"""Of the time of a run, for the device; the rest is the CPU's."""


class Watch:
    """A journal that notes when each decision was made, and a watcher that stops a run when its time is over.

    known: decisions of another run, by the edges' names, that are taken over but for every `sampled`-th. None: of no
    other run. Where one is not known, the run ends: the other one got no further.
    """

    def __init__(self, deadline: float, known: Mapping[str, Decision] | None = None, sampled: int = 1) -> None:
        self.deadline, self.known, self.sampled = deadline, known, sampled
        self.made: dict[str, Decision] = {}
        self.seconds: dict[str, float] = {}
        self._asked = 0
        self._since = time.perf_counter()

    def recall(self, edges: Sequence[Edge]) -> list[Decision] | None:
        """Asked before each edge, or each sublayer, is decided."""
        self._since = time.perf_counter()
        if self.known is None:
            return None
        if any(edge.name not in self.known for edge in edges):
            raise TimeUp("the device got no further")
        self._asked += 1
        if (self._asked - 1) % self.sampled == 0:
            return None
        names = {edge.name for edge in edges}
        return [decision for name, decision in self.known.items() if name in names]

    def record(self, decisions: Sequence[Decision]) -> None:
        seconds = (time.perf_counter() - self._since) / max(1, len(decisions))
        for decision in decisions:
            self.made[decision.edge.name] = decision
            self.seconds[decision.edge.name] = seconds

    def say(self, sentence: str) -> None:
        self.detail(sentence)

    def detail(self, text: str) -> None:
        if time.monotonic() > self.deadline:
            raise TimeUp("its time was over")

    def bar(self, title: str) -> Report:
        return lambda done, total: self.detail(title)


def run(context: Context, figures: Figures) -> None:
    rows = figures["rows"] = []
    for at, (name, method, granularity) in enumerate(_RUNS):
        facts = {"model": name, "method": method, "granularity": granularity, "tau": _TAU[name, granularity]}
        # The demo takes seconds: what it leaves is the others'.
        with context.within(1 / (len(_RUNS) - at)):
            context.attempt(rows, facts, partial(_compare, context, name, method, granularity))


def _compare(context: Context, name: str, method: str, granularity: str, row: Figures) -> None:
    subject = context.subject(name)
    tau, samples = _TAU[name, granularity], len(subject.images)
    settings = Settings(tau=tau, method=method, granularity=granularity, samples=samples, seed=context.seed)
    row |= {"images": samples, "settings": settings.to_json()}
    share = _DEVICE_SHARE if name == SMALL else 1.0
    device = Watch(time.monotonic() + share * context.left())
    row["device"] = _discover(subject, settings, context.device, device)
    row["decided"], row["removed"] = len(device.made), sum(not decision.kept for decision in device.made.values())
    context.keep()
    # Sublayers are few, and long: more than one of them is seldom to be had.
    sampled = context.sizes.sampled if name == SMALL else 1
    known = device.made if name == SMALL else None
    cpu = Watch(time.monotonic() + context.left(), known, sampled)
    row["cpu"] = _discover(subject, settings, torch.device("cpu"), cpu)
    row |= agreement(device, cpu)
    if known is None and not (row["device"]["ended_early"] or row["cpu"]["ended_early"]):
        row["times_faster"] = row["cpu"]["seconds"] / row["device"]["seconds"]


def _discover(subject: Subject, settings: Settings, device: torch.device, watch: Watch) -> Figures:
    graph_module = copy.deepcopy(subject.graph_module).to(device)
    began = time.perf_counter()
    ended = None
    try:
        discovery = discover(
            graph_module, subject.images, settings, origins(graph_module, subject.images), watch, watch
        )
    except TimeUp as error:
        ended = str(error)
    synchronize(next(graph_module.parameters()).device)
    record: Figures = {"seconds": time.perf_counter() - began, "ended_early": ended}
    return record if ended else record | {"kl": discovery.circuit.kl, "edges": len(discovery.circuit.decisions)}


def agreement(device: Watch, cpu: Watch) -> Figures:
    """Of the edges that both decided themselves."""
    names = [name for name in cpu.made if name in device.made]
    pairs = [(device.made[name], cpu.made[name]) for name in names]
    differing = [(ours, theirs) for ours, theirs in pairs if ours.kept != theirs.kept]
    exact = [pair for pair in pairs if all(decision.basis == EXACT and decision.kl is not None for decision in pair)]
    seconds = [math.fsum(watch.seconds[name] for name in names) for watch in (device, cpu)]
    return {
        "compared": len(pairs),
        "agreeing": len(pairs) - len(differing),
        "same_units": sum(ours.edge.writer.units == theirs.edge.writer.units for ours, theirs in pairs),
        "kl_difference": max((abs((ours.kl or 0) - (theirs.kl or 0)) for ours, theirs in exact), default=None),
        "first_other": [[ours.edge.name, ours.kept, ours.score, theirs.score] for ours, theirs in differing[:5]],
        "decision_seconds": seconds,
        "times_faster": seconds[1] / seconds[0] if seconds[0] else None,
    }


def lines(figures: Figures) -> list[str]:
    return [_line(row) for row in figures.get("rows", [])]


def _line(row: Figures) -> str:
    name = f"{row['model']} {row['method']} {row['granularity']}"
    if "compared" not in row:
        return f"{name}: {row.get('error', 'not finished')}"
    early = f", ended early: {row['device']['ended_early']}" if row["device"]["ended_early"] else ""
    faster = "" if row["times_faster"] is None else f", {row['times_faster']:.1f}× as fast"
    return (
        f"{name}: {row['device']['seconds']:.1f} s, {row['removed']:,} of {row['decided']:,} removed{early}; "
        f"{row['agreeing']:,} of {row['compared']:,} as the CPU decides{faster}"
    )

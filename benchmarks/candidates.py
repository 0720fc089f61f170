"""Circuits that delete a given share of the FLOPs, and the smaller models that they leave."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import nn

from benchmarks.subject import Subject
from passes.cost import Cost, measure_cost, predict_cost, unit_flops
from passes.plan import DeletionPlan
from vitfx.circuits.circuit import EMBED, Circuit, Decision
from vitfx.circuits.liveness import make_plan
from vitfx.discovery.basis.settings import Settings
from vitfx.discovery.methods.attribution import score_edges
from vitfx.discovery.methods.rank import least
from vitfx.graph.verify import rewrite, tokens_of
from vitfx.support.errors import UserError
from vitfx.support.progress import Report


@dataclass(frozen=True)
class Candidate:
    """A circuit for one share."""

    share: float  #: of the FLOPs, asked for
    deleted: float  #: the share that really goes with what is dead
    decisions: Sequence[Decision]
    tau: float | None = None  #: None for ranking methods
    trimmed: int = 0  #: how many removed edges were put back to meet the share
    seed: int | None = None  #: of random scores


class Workshop:
    """Turns decisions into plans, their cost, and smaller models."""

    def __init__(self, subject: Subject, settings: Settings) -> None:
        self.subject, self.settings = subject, settings
        self.whole = copy.deepcopy(subject.graph_module).cpu()
        pixels = subject.setup.calibration.clean[:2]
        self.image = pixels.shape[1:]
        self.before: Cost = measure_cost(subject.graph_module, self.image)
        self.tokens = tokens_of(subject.graph_module, pixels)

    def plan(self, decisions: Sequence[Decision]) -> DeletionPlan:
        circuit = Circuit(tuple(decisions), 0.0, self.settings.to_json())
        return make_plan(circuit, self.subject.graph, self.subject.setup.constants)

    def deleted(self, decisions: Sequence[Decision]) -> float:
        """The share of the FLOPs that the plan saves, as `verify` proves it; infinite where it would leave nothing."""
        try:
            plan = self.plan(decisions)
        except UserError:
            return math.inf
        after = predict_cost(self.subject.graph_module, plan, self.before, self.tokens)
        return 1 - after.flops / self.before.flops

    def build(self, decisions: Sequence[Decision]) -> tuple[nn.Module, float]:
        """The smaller model, on the CPU in eval mode, and the share of FLOPs that it saves, counted on it."""
        artifact = rewrite(self.whole, self.plan(decisions)).graph_module.eval()
        return artifact, 1 - measure_cost(artifact, self.image).flops / self.before.flops

    def ranked(self, scores: Mapping[str, float], share: float, seed: int | None = None) -> Candidate:
        """Removes the least important edges. Where shares are of edges, bisects until enough FLOPs are gone."""
        graph = self.subject.graph

        def cut(part: float) -> Sequence[Decision]:
            return least(graph, scores, part, self.tokens, self.before.flops)

        part = share
        if not graph.reads_stream:
            low, high = 0.0, 1.0
            while high - low > 0.5 / len(graph.edges()):
                part = (low + high) / 2
                low, high = (low, part) if self.deleted(cut(part)) >= share else (part, high)
            part = high
        decisions = cut(part)
        return Candidate(share, self.deleted(decisions), decisions, seed=seed)

    def trim(self, candidate: Candidate) -> Candidate:
        """Puts removed edges back, the highest score per FLOP first, as long as the share stays deleted.

        Only on the block and the head graph, where an edge's FLOPs are its writer's.
        """
        graph = self.subject.graph
        if not graph.reads_stream:
            return candidate
        saved = candidate.deleted * self.before.flops
        decisions = list(candidate.decisions)
        back = [at for at, each in enumerate(decisions) if not each.kept and each.edge.writer.sublayer != EMBED]
        cost = {at: self._flops(decisions[at]) for at in back}
        trimmed = 0
        for at in sorted(back, key=lambda at: -decisions[at].score / cost[at]):
            if saved - cost[at] >= candidate.share * self.before.flops:
                saved -= cost[at]
                decisions[at] = replace(decisions[at], kept=True)
                trimmed += 1
        return replace(candidate, deleted=self.deleted(decisions), decisions=decisions, trimmed=trimmed)

    def _flops(self, decision: Decision) -> int:
        writer = decision.edge.writer
        module = self.subject.graph.stages[self.subject.graph.stage_index(writer.sublayer)].sublayer
        assert module is not None
        return len(writer.units) * unit_flops(module, self.tokens)


def score(subject: Subject, settings: Settings, method: str, seed: int, report: Report) -> dict[str, float]:
    """Every edge's score by a ranking method."""
    setup = subject.setup
    asked = replace(settings, method=method, seed=seed)
    return score_edges(subject.graph, setup.calibration, setup.reference, asked, report)

"""How well edges are ranked: against a circuit that is known, and against what removing each edge alone costs."""

from __future__ import annotations

import random
from collections.abc import Mapping

from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score

from benchmarks.curves import DIVERGENCE, Evaluator
from vitfx.circuits.circuit import EMBED, Edge
from vitfx.support.errors import UserError
from vitfx.support.progress import Report

HEADS, PATHS = "heads", "paths"


def auroc(scores: Mapping[str, float], truth: frozenset[str]) -> float:
    """The chance that an edge of the circuit has a score of greater magnitude than one outside; ties count half.

    Raises UserError where the circuit names other edges than the graph's.
    """
    if strange := sorted(truth - scores.keys()):
        raise UserError(f"--truth names {strange[0]}, which this graph does not have: give the --paths that it is for")
    return float(roc_auc_score([name in truth for name in scores], [abs(score) for score in scores.values()]))


def exact_costs(evaluator: Evaluator, count: int, seed: int, progress: Report) -> dict[str, dict[str, float]]:
    """The KL divergence, in nats an image, of the model without each of some edges alone, by the kind of the writer and
    by the edge's name.

    count: of edges of each kind, drawn by the seed; all where there are fewer. The embedding is of neither kind.
    """
    drawn = random.Random(seed)
    kinds: dict[str, list[Edge]] = {HEADS: [], PATHS: []}
    for edge in evaluator.graph.edges():
        if edge.writer.sublayer != EMBED:
            kinds[HEADS if edge.writer.sublayer.startswith("a") else PATHS].append(edge)
    chosen = {kind: drawn.sample(edges, min(count, len(edges))) for kind, edges in kinds.items()}
    total, costs = sum(map(len, chosen.values())), dict[str, dict[str, float]]()
    for kind, edges in chosen.items():
        costs[kind] = {}
        for edge in edges:
            costs[kind][edge.name] = -evaluator.values([edge])[DIVERGENCE]
            progress(sum(map(len, costs.values())), total)
    return costs


def rank_correlation(scores: Mapping[str, float], costs: Mapping[str, float]) -> float | None:
    """Spearman's, of scores' magnitudes with costs; None where it is not defined, for too few edges or all equal."""
    pairs = [(abs(scores[name]), cost) for name, cost in costs.items()]
    if any(len(set(values)) < 2 for values in zip(*pairs, strict=True)) or not pairs:
        return None
    return float(spearmanr(*zip(*pairs, strict=True)).statistic)

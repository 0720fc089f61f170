"""How far attributions can be believed: what a few edges, drawn at random, were predicted and measured to cost.

Gradients say less of MLPs than of heads, so the two are told apart everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import torch

from vitfx.circuits.circuit import EMBED, PROBE, Decision, Writer

_PAIRS = 5


def calibration_of(decisions: Sequence[Decision], tau: float) -> dict[str, Any]:
    """For heads and MLP paths apart, over the edges drawn at random, Spearman's rank correlation of predicted and
    measured, the share of equal decisions at τ, and the scale between the two."""
    report: dict[str, Any] = {}
    scales = scales_of(decisions)
    for kind in ("heads", "paths"):
        pairs = _pairs(decisions, kind)
        if len(pairs) < _PAIRS:
            continue
        predicted, measured = torch.tensor(pairs, dtype=torch.float64).T
        same = (predicted * scales[kind] < tau) == (measured < tau)
        report[kind] = {
            "edges": len(pairs),
            "rank_correlation": _rank_correlation(predicted, measured),
            "agreement": round(float(same.double().mean()), 4),
            "scale": scales[kind],
        }
    return report


def scales_of(decisions: Sequence[Decision]) -> dict[str, float]:
    """The median of measured by predicted: 1 until enough is known."""
    scales = {}
    for kind in ("heads", "paths"):
        ratios = [score / predicted for predicted, score in _pairs(decisions, kind) if predicted > 0 and score > 0]
        scales[kind] = median(ratios) if len(ratios) >= _PAIRS else 1.0
    return scales


def kind_of(writer: Writer) -> str:
    return "heads" if writer.sublayer == EMBED or writer.sublayer.startswith("a") else "paths"


def _pairs(decisions: Sequence[Decision], kind: str) -> list[tuple[float, float]]:
    return [
        (one.attribution, one.score)
        for one in decisions
        if one.basis == PROBE and one.attribution is not None and kind_of(one.edge.writer) == kind
    ]


def _rank_correlation(predicted: torch.Tensor, measured: torch.Tensor) -> float | None:
    """Spearman's; None where all predictions or all measurements are equal, which leaves it undefined."""
    if any(len(values.unique()) == 1 for values in (predicted, measured)):
        return None
    # The import takes half a second, which other commands need not wait for.
    from scipy.stats import spearmanr

    return round(float(spearmanr(predicted, measured).statistic), 4)

"""How far attributions can be trusted: what some edges, drawn at random, were forecast to cost, and what they cost.

Gradients say less about MLPs than about heads, so the two are kept apart everywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Literal

import torch

from vitfx.circuits.circuit import EMBED, PROBE, Decision, Writer
from vitfx.circuits.details import ForecastAccuracy, ForecastCalibration

Kind = Literal["heads", "paths"]
KINDS: tuple[Kind, ...] = ("heads", "paths")
_FEWEST = 5
"""Of fewer edges nothing is said."""


def calibration_of(decisions: Sequence[Decision], tau: float) -> ForecastCalibration:
    calibration: ForecastCalibration = {}
    scales = scales_of(decisions)
    for kind in KINDS:
        pairs = _forecast_and_measured(decisions, kind)
        if len(pairs) < _FEWEST:
            continue
        forecast, measured = torch.tensor(pairs, dtype=torch.float64).T
        same = (forecast * scales[kind] < tau) == (measured < tau)
        calibration[kind] = ForecastAccuracy(
            edges=len(pairs),
            rank_correlation=_rank_correlation(forecast, measured),
            agreement=round(float(same.double().mean()), 4),
            scale=scales[kind],
        )
    return calibration


def scales_of(decisions: Sequence[Decision]) -> dict[Kind, float]:
    """The median ratio of measured to forecast cost; 1 until enough edges are known."""
    scales: dict[Kind, float] = {}
    for kind in KINDS:
        pairs = _forecast_and_measured(decisions, kind)
        ratios = [measured / forecast for forecast, measured in pairs if forecast > 0 and measured > 0]
        scales[kind] = median(ratios) if len(ratios) >= _FEWEST else 1.0
    return scales


def kind_of(writer: Writer) -> Kind:
    return "heads" if writer.sublayer == EMBED or writer.sublayer.startswith("a") else "paths"


def _forecast_and_measured(decisions: Sequence[Decision], kind: Kind) -> list[tuple[float, float]]:
    return [
        (decision.attribution, decision.score)
        for decision in decisions
        if decision.basis == PROBE and decision.attribution is not None and kind_of(decision.edge.writer) == kind
    ]


def _rank_correlation(forecast: torch.Tensor, measured: torch.Tensor) -> float | None:
    """Spearman's; None where all forecasts or all costs are equal, which leaves it undefined."""
    if any(len(values.unique()) == 1 for values in (forecast, measured)):
        return None
    # The import takes half a second, which other commands need not wait for.
    from scipy.stats import spearmanr

    return round(float(spearmanr(forecast, measured).statistic), 4)

"""report.html: the page of one run, and the page that holds several runs against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from passes.plan import DeletionPlan
from vitfx import prune_report, recover_report
from vitfx.attention_maps import AttentionMaps
from vitfx.circuit import Circuit
from vitfx.page import page
from vitfx.report_runs import PRUNE, RECOVER, Run, points_of
from vitfx.report_sections import (
    attention,
    curves,
    deleted,
    latency,
    points_table,
    pruned_bars,
    recovered_bars,
    sensitivity,
    summary,
    surroundings,
    tradeoff,
)
from vitfx.version import VERSION

_MADE = f"Written by vitfx {VERSION}. This file needs no other."


def prune_page(report: Mapping[str, Any], circuit: Circuit, plan: DeletionPlan, maps: AttentionMaps) -> str:
    """Of a run of `vitfx.prune`."""
    return page(
        prune_report.title_of(report),
        _MADE,
        [
            _pruned_summary(report, "Baseline and pruned"),
            deleted(report, circuit, plan, "What died, and where"),
            sensitivity(circuit, "Sensitivity by layer"),
            latency(pruned_bars(report), "Time by batch"),
            tradeoff([("this run", points_of(report, PRUNE))], "Accuracy against time"),
            attention(maps, "Where the class token looks"),
            surroundings(report, "How it was made"),
        ],
    )


def recover_page(report: Mapping[str, Any]) -> str:
    """Of a run of `vitfx.recover`."""
    return page(
        recover_report.title_of(report),
        _MADE,
        [
            _recovered_summary(report, "Before and after"),
            curves(report, "The course of retraining"),
            latency(recovered_bars(report), "Time"),
            tradeoff([("this run", points_of(report, RECOVER))], "Accuracy against time"),
            surroundings(report, "How it was made"),
        ],
    )


def compare_page(runs: Sequence[Run]) -> str:
    """All models in one table and one picture, then each run by itself."""
    points = [(one.name, one.points) for one in runs]
    groups = [group for one in runs for group in _bars(one)]
    return page(
        f"{len(runs)} {'run' if len(runs) == 1 else 'runs'} of vitfx",
        _MADE,
        [
            tradeoff(points, "Accuracy against time"),
            points_table(points, "All models"),
            latency(groups, "Time") if groups else "",
            *(part for one in runs for part in _own(one)),
        ],
    )


def _bars(run: Run) -> list[Any]:
    if run.report is None:
        return []
    return (pruned_bars if run.kind == PRUNE else recovered_bars)(run.report, f"{run.name}, ")


def _own(run: Run) -> list[str]:
    """What only this run has."""
    if run.report is None:
        return []
    if run.kind == RECOVER:
        return [
            _recovered_summary(run.report, f"{run.name}: before and after"),
            curves(run.report, f"{run.name}: the course of retraining"),
            surroundings(run.report, f"{run.name}: how it was made"),
        ]
    parts = [_pruned_summary(run.report, f"{run.name}: baseline and pruned")]
    if run.circuit is not None:
        parts.append(deleted(run.report, run.circuit, run.plan, f"{run.name}: what died, and where"))
        parts.append(sensitivity(run.circuit, f"{run.name}: sensitivity by layer"))
    return [*parts, surroundings(run.report, f"{run.name}: how it was made")]


def _pruned_summary(report: Mapping[str, Any], title: str) -> str:
    head = ["", "baseline", "pruned", "compared"]
    return summary(head, prune_report.rows(report), prune_report.facts(report), title, "On evaluation images")


def _recovered_summary(report: Mapping[str, Any], title: str) -> str:
    head, rows = recover_report.rows(report)
    return summary(head, rows, recover_report.facts(report), title, "On evaluation images")

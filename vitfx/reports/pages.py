"""report.html: the page of one run, and the page that holds several runs against each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from passes.plan import DeletionPlan
from vitfx.circuits.circuit import Circuit
from vitfx.reports import prune_text as prune_report
from vitfx.reports import recover_text as recover_report
from vitfx.reports.attention_maps import AttentionMaps
from vitfx.reports.course import curves, gradient_flow
from vitfx.reports.page import bullets, page, section
from vitfx.reports.peers import PEER
from vitfx.reports.points import PRUNE, RECOVER, points_of
from vitfx.reports.read_runs import Run
from vitfx.reports.runtimes import RUNTIMES, runtime_bars
from vitfx.reports.sections import (
    attention,
    costs,
    deleted,
    latency,
    pruned_bars,
    recovered_bars,
    sensitivity,
    summary,
    surroundings,
)
from vitfx.reports.tradeoff import divergence, points_table, tradeoff
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
            costs(circuit, "What the deleted cost, by layer"),
            latency(pruned_bars(report), "Time by batch"),
            tradeoff([("this run", points_of(report, PRUNE))], "Accuracy against time"),
            attention(maps, "Where the class token looks"),
            surroundings(report, "How it was made"),
        ],
    )


def recover_page(report: Mapping[str, Any], origin: Run | None, maps: AttentionMaps) -> str:
    """Of a run of `vitfx.recover`. origin: of the pruned model, where it is known."""
    return page(
        recover_report.title_of(report),
        _MADE,
        [
            _recovered_summary(report, "Before and after"),
            curves(report, "The course of retraining"),
            gradient_flow(report, "Gradient flow of retraining"),
            latency(recovered_bars(report), "Time"),
            tradeoff([("this run", points_of(report, RECOVER))], "Accuracy against time"),
            *_circuit(origin, "When it was pruned: "),
            attention(maps, "Where the class token looks"),
            surroundings(report, "How it was made"),
        ],
    )


def compare_page(runs: Sequence[Run]) -> str:
    """All models in one table and two pictures, then each run by itself."""
    points = [(one.name, one.points) for one in runs if one.points]
    groups = [group for one in runs for group in _bars(one)]
    peers = " and its peers" if any(one.kind == PEER for one in runs) else ""
    return page(
        f"{len(runs)} {'run' if len(runs) == 1 else 'runs'} of vitfx{peers}",
        _MADE,
        [
            tradeoff(points, "Accuracy against time"),
            divergence(points, "KL against time"),
            points_table(points, "All models") if points else "",
            latency(groups, "Time") if groups else "",
            *(part for one in runs for part in _own(one)),
        ],
    )


def _bars(run: Run) -> list[Any]:
    if run.report is None:
        return []
    prefix = f"{run.name}, "
    if run.kind == RUNTIMES:
        return runtime_bars(run.report, prefix)
    return (pruned_bars if run.kind == PRUNE else recovered_bars)(run.report, prefix)


def _own(run: Run) -> list[str]:
    """What only this run has."""
    return [
        *([] if run.report is None else _reported(run, run.report)),
        section(f"{run.name}: what is left out", bullets([f"{one}." for one in run.notes])),
        "" if run.made is None else surroundings(run.made, f"{run.name}: how it was made"),
    ]


def _reported(run: Run, report: Mapping[str, Any]) -> list[str]:
    if run.kind == RUNTIMES:
        return []
    if run.kind == RECOVER:
        return [
            _recovered_summary(report, f"{run.name}: before and after"),
            curves(report, f"{run.name}: the course of retraining"),
            gradient_flow(report, f"{run.name}: gradient flow of retraining"),
        ]
    return [_pruned_summary(report, f"{run.name}: baseline and pruned"), *_circuit(run, f"{run.name}: ")]


def _circuit(run: Run | None, before: str) -> list[str]:
    """before: the titles."""
    if run is None or run.report is None or run.circuit is None:
        return []
    return [
        deleted(run.report, run.circuit, run.plan, f"{before}what died, and where"),
        sensitivity(run.circuit, f"{before}sensitivity by layer"),
        costs(run.circuit, f"{before}what the deleted cost, by layer"),
    ]


def _pruned_summary(report: Mapping[str, Any], title: str) -> str:
    head = ["", "baseline", "pruned", "compared"]
    return summary(head, prune_report.rows(report), prune_report.facts(report), title, "On evaluation images")


def _recovered_summary(report: Mapping[str, Any], title: str) -> str:
    head, rows = recover_report.rows(report)
    return summary(head, rows, recover_report.facts(report), title, "On evaluation images")

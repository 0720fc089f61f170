"""report.html: the page of one run, and the page that compares several runs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from markupsafe import Markup

from passes.plan import DeletionPlan
from vitfx.circuits.circuit import Circuit
from vitfx.reports import prune_text, recover_text
from vitfx.reports.attention_maps import AttentionMaps
from vitfx.reports.course import curves, gradient_flow
from vitfx.reports.deleted_beside import deleted_beside
from vitfx.reports.page import bullets, page, section
from vitfx.reports.points import points_of_prune, points_of_recover
from vitfx.reports.read_runs import Run
from vitfx.reports.records import PruneReport, RecoverReport
from vitfx.reports.runtimes import runtime_bars
from vitfx.reports.sections import (
    Bars,
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
from vitfx.reports.task_pages import tasks_sections
from vitfx.reports.tradeoff import divergence, points_table, tradeoff
from vitfx.version import VERSION

_CAPTION = "On evaluation images"
_MADE = f"Written by vitfx {VERSION}. This file needs no other."


def prune_page(report: PruneReport, circuit: Circuit, plan: DeletionPlan, maps: AttentionMaps) -> str:
    """Of a run of `vitfx.prune`."""
    return page(
        prune_text.title_of(report),
        _MADE,
        [
            _pruned_summary(report, "Baseline and pruned"),
            deleted(report, circuit, plan, "What died, and where"),
            sensitivity(circuit, "Sensitivity by layer"),
            costs(circuit, "What the deleted cost, by layer"),
            latency(pruned_bars(report), "Time by batch"),
            tradeoff([("this run", points_of_prune(report))], "Accuracy against time"),
            attention(maps, "Where the class token looks"),
            surroundings(report, "How it was made"),
        ],
    )


def recover_page(report: RecoverReport, origin: Run | None, maps: AttentionMaps) -> str:
    """Of a run of `vitfx.recover`. origin: of the pruned model, where it is known."""
    return page(
        recover_text.title_of(report),
        _MADE,
        [
            _recovered_summary(report, "Before and after"),
            curves(report, "The course of retraining"),
            gradient_flow(report, "Gradient flow of retraining"),
            latency(recovered_bars(report), "Time"),
            tradeoff([("this run", points_of_recover(report))], "Accuracy against time"),
            *([] if origin is None else _circuit(origin, "When it was pruned: ")),
            attention(maps, "Where the class token looks"),
            surroundings(report, "How it was made"),
        ],
    )


def compare_page(runs: Sequence[Run]) -> str:
    """All models in one table and two pictures, then each run by itself."""
    points = [(run.name, run.points) for run in runs if run.points]
    groups = [group for run in runs for group in _bars(run)]
    peers = " and its peers" if any(run.is_peer for run in runs) else ""
    return page(
        f"{len(runs)} {'run' if len(runs) == 1 else 'runs'} of vitfx{peers}",
        _MADE,
        [
            tradeoff(points, "Accuracy against time"),
            divergence(points, "KL against time"),
            points_table(points, "All models") if points else Markup(""),
            latency(groups, "Time") if groups else Markup(""),
            deleted_beside([(run.name, run.plan) for run in runs if run.plan is not None], "What each run deleted"),
            *(part for run in runs for part in _own(run)),
        ],
        sorts=True,
    )


def _bars(run: Run) -> Sequence[Bars]:
    prefix = f"{run.name}, "
    if run.prune is not None:
        return pruned_bars(run.prune, prefix)
    if run.recover is not None:
        return recovered_bars(run.recover, prefix)
    return [] if run.runtimes is None else runtime_bars(run.runtimes, prefix)


def _own(run: Run) -> Iterator[Markup]:
    """What only this run has."""
    prefix = f"{run.name}: "
    if run.prune is not None:
        yield _pruned_summary(run.prune, f"{prefix}baseline and pruned")
        yield from _circuit(run, prefix)
    if run.recover is not None:
        yield _recovered_summary(run.recover, f"{prefix}before and after")
        yield curves(run.recover, f"{prefix}the course of retraining")
        yield gradient_flow(run.recover, f"{prefix}gradient flow of retraining")
    if run.tasks is not None:
        yield from tasks_sections(run.tasks, prefix)
    yield section(f"{prefix}what is left out", bullets([f"{note}." for note in run.notes]))
    if run.made is not None:
        yield surroundings(run.made, f"{prefix}how it was made")


def _circuit(run: Run, prefix: str) -> Iterator[Markup]:
    """prefix: of the titles."""
    if run.prune is not None and run.circuit is not None:
        yield deleted(run.prune, run.circuit, run.plan, f"{prefix}what died, and where")
        yield sensitivity(run.circuit, f"{prefix}sensitivity by layer")
        yield costs(run.circuit, f"{prefix}what the deleted cost, by layer")


def _pruned_summary(report: PruneReport, title: str) -> Markup:
    table = replace(prune_text.to_table(report), columns=("", "baseline", "pruned", "compared"), caption=_CAPTION)
    return summary(table, prune_text.facts(report), title)


def _recovered_summary(report: RecoverReport, title: str) -> Markup:
    return summary(replace(recover_text.model_table(report), caption=_CAPTION), recover_text.facts(report), title)

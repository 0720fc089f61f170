"""The sections of a report's page, each from the record of a run; empty where a run has nothing for it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from passes.plan import DeletionPlan
from vitfx.circuits.circuit import Circuit
from vitfx.circuits.view import score_unit
from vitfx.reports.attention_maps import AttentionMaps, Grid
from vitfx.reports.charts import Bar, bars, svg
from vitfx.reports.circuit_grid import dead_cells, has_costs, has_scores, score_grid, state_grid
from vitfx.reports.page import bullets, details, figure, paragraph, section, table, text
from vitfx.support.text import digits

_CELL = 10


def deleted(report: Mapping[str, Any], circuit: Circuit, plan: DeletionPlan | None, title: str) -> str:
    """Which heads and paths died, and how many of each went."""
    old, new = report["baseline"], report["pruned"]
    told = ", ".join(
        f"{old[key] - new[key]:,} of {old[key]:,} {name}"
        for key, name in (("heads", "heads"), ("mlp_neurons", "MLP neurons"), ("sublayers", "sublayers"))
    )
    caption = (
        "Layers upwards. Filled: alive; hollow: dead, and deleted. An MLP's paths are as wide as they have neurons."
    )
    return section(
        title, paragraph(f"Deleted: {told}."), figure(state_grid(circuit, dead_cells(circuit, plan)), caption)
    )


def sensitivity(circuit: Circuit, title: str) -> str:
    """The circuit's scores by layer."""
    if not has_scores(circuit):
        return ""
    caption = f"Score: {score_unit(circuit)}. The fuller, the more; logarithmic, three decades."
    return section(title, figure(score_grid(circuit), caption))


def costs(circuit: Circuit, title: str) -> str:
    """In place of the sensitivity of a cut for a goal, which has no scores of what it kept."""
    if has_scores(circuit) or not has_costs(circuit):
        return ""
    caption = (
        "What deleting them was predicted to cost, nats an image; a layer's heads share it equally. Hollow is what was "
        "kept, which has no score. An MLP's two paths are what it kept and what it lost, as wide as they have neurons. "
        "The fuller, the more; logarithmic, three decades."
    )
    return section(title, figure(score_grid(circuit), caption))


def latency(groups: Sequence[tuple[str, Sequence[Bar]]], title: str) -> str:
    names = "; ".join(f"{name}: {', '.join(f'{one.label} {one.shown}' for one in group)}" for name, group in groups)
    return section(title, figure(bars(groups, f"Bars of time. {names}."), "Each group has a scale of its own."))


def pruned_bars(report: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Sequence[Bar]]]:
    """Medians by batch."""
    sides = {"baseline": report["baseline"], "pruned": report["pruned"]}
    if report.get("precision"):
        sides[f"pruned, {report['precision']['name']}"] = report["precision"]
    return [
        (
            f"{prefix}batch {batch}",
            [time_bar(name, one["latency_ms"][batch], place) for place, (name, one) in enumerate(sides.items())],
        )
        for batch in report["baseline"]["latency_ms"]
    ]


def recovered_bars(report: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Sequence[Bar]]]:
    """One image alone, and an image of the test set, on each runtime."""
    models = report["models"]
    return [
        (
            f"{prefix}{title}, {runtime.removesuffix('ExecutionProvider')}",
            [time_bar(one["name"], one["runtimes"][runtime][key], place) for place, one in enumerate(models)],
        )
        for runtime in models[0]["runtimes"]
        for key, title in (("ms_at_batch_1", "one image alone"), ("ms_per_image", "an image of the test set"))
    ]


def time_bar(name: str, ms: float, series: int) -> Bar:
    """series: which colour it has."""
    return Bar(name, ms, f"{digits(ms)} ms", series)


def attention(maps: AttentionMaps, title: str) -> str:
    """Each image beside what the class token looks at; or why that is not shown."""
    if not maps.maps:
        return section(title, paragraph(maps.reason))
    kept = ", ".join(map(str, maps.heads))
    told = (
        f"How much the class token attends to each patch in {maps.sublayer}, the last attention that survives, "
        f"averaged on both sides over the {len(maps.heads)} of its {maps.total} heads that do ({kept}). The fuller, "
        "the more; the fullest is each map's own greatest."
    )
    rows = []
    for one in maps.maps:
        data = base64.b64encode(one.picture).decode()
        shape = f"{len(one.before[0])} / {len(one.before)}"
        image = f'<img src="data:image/png;base64,{data}" alt="{text(one.name)}">'
        sides = [
            (_map(grid, f"{one.name}: {side}"), side) for grid, side in ((one.before, "before"), (one.after, "after"))
        ]
        boxes = "".join(figure(picture, caption) for picture, caption in ((image, one.name), *sides))
        rows.append(f'<div class="three" style="--shape: {shape}">{boxes}</div>')
    return section(title, paragraph(told), *rows)


def _map(grid: Grid, alt: str) -> str:
    most = max(map(max, grid)) or 1.0
    parts = [
        f'<rect x="{x * _CELL}" y="{y * _CELL}" width="{_CELL}" height="{_CELL}" fill="var(--heat)" '
        f'fill-opacity="{value / most:.3f}"></rect>'
        for y, row in enumerate(grid)
        for x, value in enumerate(row)
    ]
    return svg(len(grid[0]) * _CELL, len(grid) * _CELL, f"{alt}, the greatest {most:.3g} of the attention", parts)


def surroundings(report: Mapping[str, Any], title: str) -> str:
    """How it was made, folded up."""
    return section(title, details("Settings", report["settings"]), details("Environment", report["environment"]))


def summary(head: Sequence[str], rows: Sequence[Sequence[str]], told: Sequence[str], title: str, caption: str) -> str:
    return section(title, table(head, rows, caption), bullets(told))

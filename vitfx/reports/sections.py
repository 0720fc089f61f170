"""The sections of a report's page; each is empty where a run has nothing for it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from markupsafe import Markup

from passes.plan import DeletionPlan
from vitfx.circuits.circuit import Circuit
from vitfx.circuits.grid import dead_cells, has_costs, has_scores, score_grid, state_grid
from vitfx.circuits.view import score_unit
from vitfx.reports.attention_maps import AttentionMaps, Heat
from vitfx.reports.charts import Bar, bars
from vitfx.reports.page import bullets, details, figure, image_maps, paragraph, section, table
from vitfx.reports.records import Made, PrecisionRecord, PruneReport, RecoverReport, Side
from vitfx.reports.token_groups import Groups
from vitfx.support.svg import drawing, element
from vitfx.support.tables import Table
from vitfx.support.text import digits

Bars = tuple[str, Sequence[Bar]]
"""A group of bars and its title."""
_CELL = 10


def deleted(report: PruneReport, circuit: Circuit, plan: DeletionPlan | None, title: str) -> Markup:
    """Which heads and paths died, and how many of each went."""
    old, new = report["baseline"], report["pruned"]
    counts = [
        (old["heads"], new["heads"], "heads"),
        (old["mlp_neurons"], new["mlp_neurons"], "MLP neurons"),
        (old["sublayers"], new["sublayers"], "sublayers"),
    ]
    listed = ", ".join(f"{before - after:,} of {before:,} {name}" for before, after, name in counts)
    caption = (
        "Layers upwards. Filled: alive; hollow: dead, and deleted. An MLP's paths are as wide as they have neurons."
    )
    grid = state_grid(circuit, dead_cells(circuit, plan))
    return section(title, paragraph(f"Deleted: {listed}."), figure(grid.svg(), caption))


def sensitivity(circuit: Circuit, title: str) -> Markup:
    """The circuit's scores by layer."""
    if not has_scores(circuit):
        return Markup("")
    caption = f"Score: {score_unit(circuit)}. The fuller, the higher; logarithmic, three decades."
    return section(title, figure(score_grid(circuit).svg(), caption))


def costs(circuit: Circuit, title: str) -> Markup:
    """In place of the sensitivity of a cut for a goal, which has no scores of what it kept."""
    if has_scores(circuit) or not has_costs(circuit):
        return Markup("")
    caption = (
        "What deleting them was predicted to cost, in nats an image; a layer's heads share it equally. Hollow is what "
        "was kept, which has no score. An MLP's two paths are what it kept and what it lost, as wide as they have "
        "neurons. The fuller, the higher; logarithmic, three decades."
    )
    return section(title, figure(score_grid(circuit).svg(), caption))


def latency(groups: Sequence[Bars], title: str) -> Markup:
    listed = "; ".join(f"{name}: {', '.join(f'{bar.label} {bar.shown}' for bar in group)}" for name, group in groups)
    return section(title, figure(bars(groups, f"Bars of time. {listed}."), "Each group has a scale of its own."))


def pruned_bars(report: PruneReport, prefix: str = "") -> list[Bars]:
    """Medians by batch."""
    sides: dict[str, Side | PrecisionRecord] = {"baseline": report["baseline"], "pruned": report["pruned"]}
    if report["precision"] is not None:
        sides[f"pruned, {report['precision']['name']}"] = report["precision"]
    return [
        (
            f"{prefix}batch {batch}",
            [time_bar(name, side["latency_ms"][batch], series) for series, (name, side) in enumerate(sides.items())],
        )
        for batch in report["baseline"]["latency_ms"]
    ]


def recovered_bars(report: RecoverReport, prefix: str = "") -> list[Bars]:
    """One image alone, and an image of the test set, on each runtime."""
    groups: list[Bars] = []
    for runtime in report["models"][0]["runtimes"]:
        times = [(model["name"], model["runtimes"][runtime]) for model in report["models"]]
        alone = [time_bar(name, each["ms_at_batch_1"], series) for series, (name, each) in enumerate(times)]
        among = [time_bar(name, each["ms_per_image"], series) for series, (name, each) in enumerate(times)]
        provider = runtime.removesuffix("ExecutionProvider")
        groups.append((f"{prefix}one image alone, {provider}", alone))
        groups.append((f"{prefix}an image of the test set, {provider}", among))
    return groups


def time_bar(name: str, ms: float, series: int) -> Bar:
    """series: which colour it has."""
    return Bar(name, ms, f"{digits(ms)} ms", series)


def attention(maps: AttentionMaps, title: str) -> Markup:
    """Each image beside what the class token looks at; or why that is not shown."""
    if maps.groups:
        return _together(maps)
    if not maps.maps:
        return section(title, paragraph(maps.reason))
    kept = ", ".join(map(str, maps.heads))
    explained = (
        f"How much the class token attends to each patch in {maps.sublayer}, the last attention that survives, "
        f"averaged on both sides over the {len(maps.heads)} of its {maps.total} heads that do ({kept}). The fuller, "
        "the more; the fullest patch of each map is its own greatest."
    )
    rows = [
        image_maps(
            image.name,
            image.picture,
            [
                (_heat_map(image.before, f"{image.name}: before"), "before"),
                (_heat_map(image.after, f"{image.name}: after"), "after"),
            ],
            (len(image.before[0]), len(image.before)),
        )
        for image in maps.maps
    ]
    return section(title, paragraph(explained), *rows)


def _together(maps: AttentionMaps) -> Markup:
    """Each image beside its patches, those of one token in one colour."""
    rows = [
        image_maps(
            image.name,
            image.picture,
            [(_group_map(image.groups, f"{image.name}: merged patches"), "one colour, one token")],
            (len(image.groups[0]), len(image.groups)),
        )
        for image in maps.groups
    ]
    explained = "Patches of one colour go on as one token behind the last merge; those without colour stay alone."
    return section("Which patches end up together", paragraph(explained), *rows)


def _group_map(groups: Groups, alt: str) -> Markup:
    sizes = Counter(token for row in groups for token in row)
    # Hues by the golden angle, so that neighbouring numbers differ.
    parts = [
        element(
            "rect", x=x * _CELL, y=y * _CELL, width=_CELL, height=_CELL,
            fill=f"hsl({token * 137.5 % 360:.0f} 60% 55%)" if sizes[token] > 1 else "none",
        )
        for y, row in enumerate(groups)
        for x, token in enumerate(row)
    ]  # fmt: skip
    alt = f"{alt}, {len(sizes)} tokens of {sum(sizes.values())} patches"
    return drawing(len(groups[0]) * _CELL, len(groups) * _CELL, alt, parts)


def _heat_map(heat: Heat, alt: str) -> Markup:
    most = max(map(max, heat)) or 1.0
    parts = [
        element(
            "rect", class_="heat", x=x * _CELL, y=y * _CELL, width=_CELL, height=_CELL,
            fill_opacity=f"{value / most:.3f}",
        )
        for y, row in enumerate(heat)
        for x, value in enumerate(row)
    ]  # fmt: skip
    alt = f"{alt}, the greatest {most:.3g} of the attention"
    return drawing(len(heat[0]) * _CELL, len(heat) * _CELL, alt, parts)


def surroundings(made: Made, title: str) -> Markup:
    """How it was made, folded up."""
    return section(title, details("Settings", made["settings"]), details("Environment", made["environment"]))


def summary(models: Table, facts: Sequence[str], title: str) -> Markup:
    return section(title, table(models), bullets(facts))

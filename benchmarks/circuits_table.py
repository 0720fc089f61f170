"""What `benchmarks.circuits` found, as a person reads it."""

from __future__ import annotations

from typing import Any

from vitfx.support.tables import Table

_NAMES = {"effect": "an edge's effect", "eap": "EAP, all edges", "eap-ig": "EAP-IG, all edges"}


def table(record: dict[str, Any]) -> Table:
    """A column for each tool; the times are medians, and their ratios those of medians."""
    settings = record["settings"]
    tools = list(record["times"]["effect"])
    rows, groups = [], []
    for what, name in _NAMES.items():
        times, agreement = record["times"][what], record["agreement"][what]
        own = [
            (name, *(f"{times[tool]['median_ms'] / 1e3:.3f} s" for tool in tools)),
            ("  times vitfx's", *(f"{times[tool]['ratio']['of_medians']:.1f}" for tool in tools)),
            ("  rank correlation", *_cells(agreement, "rank_correlation", tools, ".4f")),
            ("  greatest difference by greatest value", *_cells(agreement, "of_greatest", tools, ".0e")),
        ]
        if what == "effect":
            own.append(("  by the value itself", *_cells(agreement, "relative", tools, ".0e")))
        rows += own
        groups += [what] * len(own)
    packages, besides = ", ".join(record["packages"].values()), record["seconds_besides_an_edge"]
    return Table(
        ("", *tools),
        rows,
        f"{settings['granularity']} graph, {record['edges']:,} edges, {settings['sampled_edges']} sampled, "
        f"{settings['samples']} images",
        f"{packages}. Values are compared in float64, times are of float32. vitfx takes {besides:.4f} s an edge more, "
        "for what serves all edges of a reader.",
        groups=groups,
    )


def _cells(agreement: dict[str, Any], measure: str, tools: list[str], form: str) -> list[str]:
    return [format(agreement[tool][measure], form) if measure in agreement.get(tool, {}) else "" for tool in tools]

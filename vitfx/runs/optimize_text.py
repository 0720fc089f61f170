"""The report of exact rewrites, as Markdown and on the console."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table
from rich.text import Text

from vitfx.support.text import digits, provenance_lines

Row = tuple[str, ...]


def rows(report: Mapping[str, Any]) -> tuple[Row, list[Row]]:
    """The table's head and rows: what was made alone, then each form with all rewrites, then the kept one again."""
    batches = list(report["time_left"])
    table: list[Row] = []
    for one in report["rewrites"]:
        proof = "" if one["error"] is None else f"{one['error']:.0e}"
        if one["changed"]:
            table.append((f"{one['name']} alone", *(_part(one["alone"].get(batch)) for batch in batches), proof))
        else:
            table.append((f"{one['name']}: nothing to do", *("" for _ in batches), proof))
    for name, found in report["forms"].items():
        table.append((f"all, form {name}", *(_part(found.get(batch)) for batch in batches), ""))
    kept = f"kept: form {report['form']}, measured again"
    table.append(
        (kept, *(_part(report["time_left"][batch]) for batch in batches), f"{report['verify']['float64']:.0e}")
    )
    return ("time left", *(f"batch {batch}" for batch in batches), "error"), table


def _part(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def to_markdown(report: Mapping[str, Any]) -> str:
    """report.md."""
    head, table = rows(report)
    milliseconds = ", ".join(
        f"{digits(both['baseline']['median_ms'])} → {digits(both['optimized']['median_ms'])} at batch {batch}"
        for batch, both in report["latency_ms"].items()
    )
    lines = [
        f"# {report['model']}, optimized by vitfx",
        "",
        f"| {' | '.join(head)} |",
        f"| --- |{' ---: |' * (len(head) - 1)}",
        *(f"| {' | '.join(row)} |" for row in table),
        "",
        "- Time as a part of another's, the median of rounds in turns. A rewrite alone: of the canonical graph's by "
        f"the same exporter. All together: of baseline.onnx's, which is {report['baseline']}.",
        f"- Medians in milliseconds: {milliseconds}.",
        "- Error: the greatest difference of the logits that the rewrite makes, by the greatest logit, in float64, on "
        f"{report['images']['count']} images ({report['images']['of']}). optimized.onnx against torch, in float32: "
        f"{report['verify']['onnx']:.1e}.",
        "- The file has standard operators alone."
        if report["portable"]
        else "- The file has operators of ONNX Runtime's own; --portable leaves them out.",
        *(f"- {note}" for one in report["rewrites"] for note in one["notes"]),
        *(f"- {note}" for note in report["notes"]),
        *provenance_lines(report["settings"], report["environment"]),
    ]
    return "\n".join(lines)


def to_table(report: Mapping[str, Any]) -> Table:
    """The same table for a console."""
    head, table = rows(report)
    # As text: a path may have brackets, which rich would take for styles.
    shown = Table(title=Text(f"{report['model']}: time as a part of {report['baseline']}"))
    shown.add_column(head[0])
    for title in head[1:]:
        shown.add_column(title, justify="right")
    for row in table:
        shown.add_row(*row)
    return shown

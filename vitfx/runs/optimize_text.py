"""The report of exact rewrites, as Markdown and on the console."""

from __future__ import annotations

from collections.abc import Mapping

from vitfx.deploy.precisions import INT8
from vitfx.reports.records import OptimizeReport
from vitfx.runs.optimize_int8 import precision_facts
from vitfx.support.tables import Table, markdown_report
from vitfx.support.text import digits


def to_table(report: OptimizeReport) -> Table:
    """Each rewrite alone, then each form with all rewrites, then the one that was kept, measured again."""
    batches = list(report["time_left"])

    def row(name: str, times: Mapping[str, float] | None, error: float | None = None) -> list[str]:
        parts = ["" if times is None else f"{times[batch]:.3f}" if batch in times else "–" for batch in batches]
        return [name, *parts, "" if error is None else f"{error:.0e}"]

    rows = [
        row(f"{rewrite['name']} alone", rewrite["alone"], rewrite["error"])
        if rewrite["changed"]
        else row(f"{rewrite['name']}: nothing to do", None, rewrite["error"])
        for rewrite in report["rewrites"]
    ]
    third = report["precision"]
    precision = " in int8" if third is not None and third["name"] == INT8 else ""
    rows += [row(f"all, form {name}{precision}", times) for name, times in report["forms"].items()]
    kept = f"kept: form {report['form']}, measured again"
    rows.append(row(kept, report["time_left"], report["verify"]["float64"]))
    if third is not None:
        rows.append(row(f"{third['file']}, measured again", third["time_left"]))
    title = f"{report['model']}: time as a part of {report['baseline']}"
    return Table(("time left", *(f"batch {batch}" for batch in batches), "error"), rows, title)


def to_markdown(report: OptimizeReport) -> str:
    """report.md."""
    milliseconds = ", ".join(
        f"{digits(both['baseline']['median_ms'])} → {digits(both['optimized']['median_ms'])} at batch {batch}"
        for batch, both in report["latency_ms"].items()
    )
    facts = [
        "Time as a part of another's, the median over rounds in turns. A rewrite alone: of the canonical graph's by "
        f"the same exporter. All together: of baseline.onnx's, which is {report['baseline']}.",
        f"Medians in milliseconds: {milliseconds}.",
        "Error: the greatest difference that the rewrite makes to the logits, by the greatest logit, in float64, on "
        f"{report['images']['count']} images ({report['images']['of']}). optimized.onnx against torch, in float32: "
        f"{report['verify']['onnx']:.1e}; optimized.pt2, the same for torch alone, {report['verify']['pt2']:.1e}.",
        "The file has standard operators only."
        if report["portable"]
        else "The file has operators of ONNX Runtime's own; --portable leaves them out.",
        *(note for rewrite in report["rewrites"] for note in rewrite["notes"]),
        *precision_facts(report["precision"]),
        *report["notes"],
    ]
    title = f"{report['model']}, optimized by vitfx"
    return markdown_report(title, to_table(report), facts, report["settings"], report["environment"])

"""What `benchmarks.methods` found, for the terminal and as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from vitfx.support.tables import Table


def table(record: dict[str, Any]) -> Table:
    """Share by share, method by method."""
    rows, groups = [], []
    for share in record["asked"]["flops"]:
        for method, result in record["methods"].items():
            rows.append(_cells(method, result, [row for row in result["rows"] if row["share"] == share]))
            groups.append(share)
    columns = ("FLOPs deleted", "method", "KL", "agreement", "top-1", "calibration KL", "discovery")
    return Table(columns, rows, _title(record), left=(1,), groups=groups)


def markdown(record: dict[str, Any]) -> str:
    """A title, the table and what its columns are."""
    lines = [_title(record), "", *table(record).to_markdown()]
    machine = record["asked"]["environment"]
    preparation = statistics.median(result["preparation_seconds"] for result in record["methods"].values())
    lines += [
        "",
        "KL is D_KL(whole ‖ smaller) in nats an image; top-1 is followed by its standard error; random stands for the "
        "mean of its seeds and, after ±, their standard deviation. Discovery is the seconds of one run, without the "
        f"{preparation:.0f} s that all methods share (loading, tracing, means, grouping), on "
        f"{machine['device']} ({machine['cpu']}, {machine['threads']} threads).",
    ]
    return "\n".join(lines) + "\n"


def _title(record: dict[str, Any]) -> str:
    settings, asked = record["asked"]["settings"], record["asked"]
    whole = next(iter(record["methods"].values()))["whole"]
    accuracy = "" if whole["accuracy"] is None else f"; the whole model's top-1: {_percent([whole['accuracy']])}"
    return (
        f"{settings['granularity']} graph, {settings['ablation']} ablation, {settings['samples']} calibration and "
        f"{asked['evaluation_images']} evaluation images{accuracy}"
    )


def _cells(method: str, result: dict[str, Any], rows: Sequence[dict[str, Any]]) -> list[str]:
    """rows: the result's of one share."""

    def of(name: str) -> list[Any]:
        return [row[name] for row in rows]

    top = "–" if None in of("accuracy") else _percent(of("accuracy"), of("standard_error")[0])
    return [
        f"{statistics.fmean(of('deleted')):.1%}",
        method,
        _number(of("kl")),
        _percent(of("agreement")),
        top,
        _number(of("calibration_kl")),
        f"{result['seconds']:.1f} s",
    ]


def _number(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.4f}{spread}"


def _percent(values: Sequence[float], error: float | None = None) -> str:
    """error: of one value; several are followed by their standard deviation instead."""
    spread = statistics.stdev(values) if len(values) > 1 else error
    return f"{statistics.fmean(values):.1%}" + ("" if spread is None else f" ± {100 * spread:.1f}")

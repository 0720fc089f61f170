"""What `benchmarks.classes` found, for the terminal, as Markdown, and as a picture."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import fmean, stdev
from typing import TYPE_CHECKING, Any

from vitfx.support.tables import Table

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row = dict[str, Any]
Value = Callable[[Row], float]


def lost(row: Row) -> float:
    """Points of top-1."""
    return 100 * (float(row["whole"]) - float(row["accuracy"]))


def table(record: dict[str, Any]) -> Table:
    """Means over draws, with their standard deviation."""
    columns = (
        "classes",
        "draws",
        "FLOPs left",
        "parameters left",
        "whole",
        "points lost",
        "KL",
        "speed-up",
        "made in",
    )
    cells = [_cells(count, rows) for count, rows in _by_count(record).items()]
    return Table(columns, cells, _title(record), left=())


def markdown(record: dict[str, Any]) -> str:
    """A title, the table, and what its columns are."""
    asked = record["asked"]
    machine, target = asked["environment"], asked["target"]
    return "\n".join(
        [
            _title(record),
            "",
            *table(record).to_markdown(),
            "",
            "No training. A draw is of random classes; figures are means over draws ± their standard deviation, of the "
            f"exported model on ONNX Runtime {machine['onnxruntime']} and on all evaluation images of its classes, on "
            "which the whole model's top-1 is the column whole. FLOPs and parameters are shares of the model's for the "
            "same classes, and the speed-up is the time of its plain export by this one's, in turns, at batch "
            f"{target['batch']} on {target['device']} ({machine['cpu']}, {machine['cores']} cores).",
            "",
        ]
    )


def draw(record: dict[str, Any]) -> Figure:
    """FLOPs left, speed-up and points lost against the number of classes: a point a draw, a line through the means."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    panels: Sequence[Axes] = figure.subplots(1, 3)
    values: dict[str, Value] = {
        "FLOPs left, %": lambda row: 100 * float(row["flops"]),
        "times as fast as the plain export": lambda row: float(row["speedup"]),
        "points of top-1 lost": lost,
    }
    groups = _by_count(record)
    for panel, (label, value) in zip(panels, values.items(), strict=True):
        for count, rows in groups.items():
            panel.plot([count] * len(rows), [value(row) for row in rows], "o", color="#2a6f97", markersize=4)
        panel.plot(list(groups), [fmean(map(value, rows)) for rows in groups.values()], color="#2a6f97")
        panel.set(xscale="log", xlabel="classes", ylabel=label, xticks=list(groups), xticklabels=list(map(str, groups)))
        panel.minorticks_off()
    panels[0].set(ylim=(0, 100))
    panels[2].axhline(record["asked"]["max_drop"], linestyle="--", linewidth=1, color="#b5472f")
    return figure


def _title(record: dict[str, Any]) -> str:
    asked = record["asked"]
    merged = "no tokens merged" if asked["tokens"] == "off" else f"tokens {asked['tokens']}"
    return f"{asked['model']['source']}, at most {asked['max_drop']:g} points of top-1 lost, {merged}"


def _by_count(record: dict[str, Any]) -> dict[int, list[Row]]:
    rows = sorted(record["rows"].values(), key=lambda row: (row["count"], row["draw"]))
    counts = dict.fromkeys(row["count"] for row in rows)
    return {count: [row for row in rows if row["count"] == count] for count in counts}


def _cells(count: int, rows: Sequence[Row]) -> list[str]:
    def over(value: Value, format: str, unit: str = "") -> str:
        values = [value(row) for row in rows]
        spread = f" ± {stdev(values):{format}}" if len(values) > 1 else ""
        return f"{fmean(values):{format}}{spread}{unit}"

    return [
        str(count),
        str(len(rows)),
        over(lambda row: 100 * float(row["flops"]), ".1f", " %"),
        over(lambda row: 100 * float(row["parameters"]), ".1f", " %"),
        over(lambda row: 100 * float(row["whole"]), ".1f", " %"),
        over(lost, ".2f"),
        over(lambda row: float(row["kl"]), ".3f"),
        over(lambda row: float(row["speedup"]), ".2f", "×"),
        f"{fmean(float(row['seconds']) for row in rows) / 60:.1f} min",
    ]

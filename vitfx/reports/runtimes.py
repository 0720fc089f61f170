"""Results of benchmarks.runtimes for a comparison: how long models take on every runtime, batch by batch."""

from __future__ import annotations

from pathlib import Path

from vitfx.reports.charts import Bar
from vitfx.reports.read_runs import DAMAGES, Run, number
from vitfx.reports.records import Made, RuntimesRecord
from vitfx.reports.sections import time_bar
from vitfx.support.errors import UserError


def read_runtimes(record: RuntimesRecord, path: Path, name: str) -> Run:
    """A run without points: its times are of no baseline of its own. name: of the file, on the page. Raises UserError
    for a damaged file."""
    try:
        if not runtime_bars(record):
            raise ValueError("no model was timed")
        notes = tuple(
            f"{row['model']} was not timed at batch {row['batch']} on {row['runtime']}: {row['unavailable']}"
            for row in record["latency"]
            if row["unavailable"] is not None
        )
        made = Made(settings=record["settings"], environment=record["environment"])
    except DAMAGES as error:
        raise UserError(
            f"{path} is a damaged result of benchmarks.runtimes ({error!r}): give one that it finished"
        ) from error
    return Run(name, runtimes=record, made=made, notes=notes)


def runtime_bars(record: RuntimesRecord, prefix: str = "") -> list[tuple[str, list[Bar]]]:
    """Medians: a group for each batch and runtime, a bar for each model, which has its colour in all groups."""
    models = [str(model["name"]) for model in record["models"]]
    groups: dict[str, list[Bar]] = {}
    for row in record["latency"]:
        if row["unavailable"] is not None:
            continue
        bar = time_bar(str(row["model"]), number(row, "median_ms"), models.index(row["model"]))
        groups.setdefault(f"{prefix}batch {row['batch']}, {row['runtime']}", []).append(bar)
    return list(groups.items())

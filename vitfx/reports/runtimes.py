"""Results of benchmarks.runtimes for a comparison: how long models take on every runtime, batch by batch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitfx.reports.charts import Bar
from vitfx.reports.read_runs import RESULTS, Run, number
from vitfx.reports.sections import time_bar
from vitfx.support.errors import UserError

RUNTIMES = "runtimes"


def has_runtimes(record: Mapping[str, Any]) -> bool:
    """Whether this is what benchmarks.runtimes writes."""
    return {"latency", "evaluation", "settings"} <= record.keys()


def read_runtimes(record: Mapping[str, Any], path: Path, name: str) -> Run:
    """A run without points: its times are of no baseline of its own. record: what the file has. name: of the file, on
    the page. Raises UserError for a damaged one."""
    try:
        if not runtime_bars(record):
            raise ValueError("no model was timed")
        notes = tuple(
            f"{row['model']} was not timed at batch {row['batch']} on {row['runtime']}: {row['unavailable']}"
            for row in record["latency"]
            if row["unavailable"] is not None
        )
        made = {"settings": dict(record["settings"]), "environment": dict(record["environment"])}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is no result of benchmarks.runtimes ({error!r}): {RESULTS}") from error
    return Run(name, (), RUNTIMES, record, made=made, notes=notes)


def runtime_bars(record: Mapping[str, Any], prefix: str = "") -> list[tuple[str, list[Bar]]]:
    """Medians: a group for each batch and runtime, a bar for each model, which has its colour in all groups."""
    models = [str(one["name"]) for one in record["models"]]
    groups: dict[str, list[Bar]] = {}
    for row in record["latency"]:
        if row["unavailable"] is not None:
            continue
        bar = time_bar(str(row["model"]), number(row, "median_ms"), models.index(row["model"]))
        groups.setdefault(f"{prefix}batch {row['batch']}, {row['runtime']}", []).append(bar)
    return list(groups.items())

"""What `python -m benchmarks.cuda` prints at its end: fewer than 60 lines, whatever happened."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

from benchmarks.gpu.steps import STEPS, Step

MOST_LINES = 59
_WIDTH = 118


def table(record: Mapping[str, Any]) -> list[str]:
    """A line for the machine, and for each step its state, time, peak memory and a few lines of figures."""
    lines = [_machine(record["environment"] or {}), f"{'step':<10}{'state':<10}{'s':>7}{'MiB':>9}  what it is about"]
    for step in STEPS:
        if (result := record["steps"].get(step.name)) is not None:
            lines += [_head(step, result), *(f"    {line}"[:_WIDTH] for line in _lines(step, result))]
    if record["unwritten"]:
        lines.append(record["unwritten"])
    return [*lines[: MOST_LINES - 1], f"{record['seconds']:.0f} s in all"]


def _machine(facts: Mapping[str, Any]) -> str:
    where = ", ".join(facts.get("gpus") or [facts.get("cpu", "an unknown machine")])
    versions = ", ".join(f"{name} {facts.get(name)}" for name in ("vitfx", "torch", "onnxruntime"))
    return f"{where}: {versions}"[:_WIDTH]


def _head(step: Step, record: Mapping[str, Any]) -> str:
    memory = record.get("peak_memory_mib", {})
    peak = memory.get("device", memory.get("host"))
    seconds = f"{record['seconds']:.1f}" if "seconds" in record else "-"
    return f"{step.name:<10}{record['state']:<10}{seconds:>7}{'-' if peak is None else f'{peak:.0f}':>9}  {step.title}"


def _lines(step: Step, record: Mapping[str, Any]) -> list[str]:
    lines = [record["error"]] if "error" in record else []
    try:
        for line in step.load().lines(_made(record.get("figures") or {})):
            lines += textwrap.wrap(line, _WIDTH - 4, subsequent_indent="    ", break_on_hyphens=False)
    except Exception as error:  # A table is no place to lose the other steps' figures.
        lines.append(f"its figures can't be shown ({error!r}): read them in the JSON file")
    if record.get("rows_left_out"):
        lines.insert(0, f"{record['rows_left_out']} rows were left out, because no time was left for them")
    if len(lines) > step.lines:
        lines = [*lines[: step.lines - 1], f"… and {len(lines) - step.lines + 1} more in the JSON file"]
    return lines


def _made(figures: Mapping[str, Any]) -> dict[str, Any]:
    """Without the rows for which no time was left: they have no figures."""
    rows = [row for row in figures.get("rows", []) if "left_out" not in row]
    return {**figures, "rows": rows}

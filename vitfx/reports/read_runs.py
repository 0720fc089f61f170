"""The folders that a comparison is of: their reports, and the circuit of a run of pruning."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from passes.plan import DeletionPlan
from vitfx.circuits.circuit import Circuit, read_circuit
from vitfx.circuits.view import read_sublayers
from vitfx.pruning.plan_file import PLAN, read_plan
from vitfx.reports.points import PRUNE, Reached, kind_of, points_of, points_of_rounds, points_of_sweep
from vitfx.support.errors import UserError
from vitfx.support.files import ROUNDS, SWEEP

REPORT, CIRCUIT = "report.json", "circuit.json"
RESULTS = "give folders of finished runs, or JSON files of benchmarks.peers or benchmarks.runtimes"


@dataclass(frozen=True)
class Run:
    """name: of the folder or file, as short as tells it from others. kind: whose the report is, "prune" or "recover",
    or what a file has, "peer" or "runtimes"; None where there is none.

    circuit, plan: of a run of pruning. made: a record with "settings" and "environment", where one is known. notes:
    what is not shown and why, a sentence each without its full stop.
    """

    name: str
    points: tuple[Reached, ...]
    kind: str | None = None
    report: Mapping[str, Any] | None = None
    circuit: Circuit | None = None
    plan: DeletionPlan | None = None
    made: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()


def read_run(folder: Path, name: str) -> Run:
    """name: of the folder, on the page. Raises UserError for anything but the folder of a finished run."""
    report, sweep, rounds = (_read(folder / name) for name in (REPORT, SWEEP, ROUNDS))
    if report is None and sweep is None and rounds is None:
        raise UserError(
            f"{folder} has none of {REPORT}, {SWEEP} and {ROUNDS}: give folders of finished runs of vitfx.prune or "
            "vitfx.recover"
        )
    kind = None if report is None else kind_of(report)
    if report is not None and kind is None:
        raise UserError(
            f"{folder / REPORT} is a report of neither vitfx.prune nor vitfx.recover: give folders that they wrote"
        )
    try:
        if report is not None and kind == PRUNE:
            report = _completed(report)
        points = (
            *(() if report is None or kind is None else points_of(report, kind)),
            *(() if sweep is None else points_of_sweep(sweep)),
            *(() if rounds is None else points_of_rounds(rounds)),
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError, IndexError, AttributeError) as error:
        raise UserError(f"{folder} has a damaged report ({error!r}): give the folder of a finished run") from error
    if not points:
        raise UserError(f"{folder} has no model yet: give the folder of a finished run")
    circuit, plan, notes = _circuit(folder) if kind == PRUNE else (None, None, ())
    return Run(name, points, kind, report, circuit, plan, report or sweep or rounds, notes)


def _read(path: Path) -> Mapping[str, Any] | None:
    """None where there is no such file."""
    return read_record(path, "give the folder of a finished run") if path.exists() else None


def read_record(path: Path, instead: str) -> Mapping[str, Any]:
    """A JSON object. instead: what to do where it is none. Raises UserError."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read ({error}): {instead}") from error
    if not isinstance(record, dict):
        raise UserError(f"{path} is no report of vitfx: {instead}")
    return record


def number(row: Mapping[str, Any], key: str) -> float:
    """A finite one; raises KeyError, and ValueError for anything else."""
    value = row[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{key} is {value!r}")
    return float(value)


def _completed(report: Mapping[str, Any]) -> Mapping[str, Any]:
    """A report of vitfx.prune with what earlier versions did not write, for they did not do it."""
    circuit = {"source": None, "method": report["settings"].get("method"), "granularity": "head"}
    return {
        "precision": None,
        "deployment": {},
        "compensation": {"sentence": None},
        "notes": [],
        **report,
        "circuit": circuit | report["circuit"],
    }


def _circuit(folder: Path) -> tuple[Circuit | None, DeletionPlan | None, tuple[str, ...]]:
    """The circuit and its plan where they are there, and why they are not shown where they can't be used."""
    if not (folder / CIRCUIT).exists():
        return None, None, ()
    try:
        circuit = read_circuit(folder / CIRCUIT)
        read_sublayers(circuit)
        return circuit, read_plan(folder) if (folder / PLAN).exists() else None, ()
    except UserError as error:
        return None, None, (f"What died is not shown: {error}",)

"""What a comparison is of: folders of runs, with their reports and circuits, and the files of benchmarks."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from passes.plan import DeletionPlan
from vitfx.circuits.circuit import Circuit, read_circuit
from vitfx.circuits.view import read_sublayers
from vitfx.pruning.plan_file import PLAN, read_plan
from vitfx.reports.points import ModelPoint, points_of_prune, points_of_recover, points_of_rounds, points_of_sweep
from vitfx.reports.records import (
    PRUNE_REPORT,
    RECOVER_REPORT,
    ROUNDS_RECORD,
    SWEEP_RECORD,
    Made,
    PruneReport,
    RecoverReport,
    RoundsRecord,
    RuntimesRecord,
    SweepRecord,
    TasksRecord,
)
from vitfx.support.errors import UserError, as_options
from vitfx.support.files import ROUNDS, SWEEP
from vitfx.support.json_files import read_any_json, read_json

REPORT, CIRCUIT = "report.json", "circuit.json"
DAMAGES = (KeyError, TypeError, ValueError, ZeroDivisionError, IndexError, AttributeError)
"""What a record raises that is not what its format says."""
_ADVICE = "give the folder of a finished run"


@dataclass(frozen=True)
class Run:
    """What a folder or a file has; at most one of the reports."""

    name: str  #: of the folder or file, as short as tells it from others
    points: tuple[ModelPoint, ...] = ()
    prune: PruneReport | None = None
    recover: RecoverReport | None = None
    runtimes: RuntimesRecord | None = None
    tasks: TasksRecord | None = None  #: circuits of several tasks
    circuit: Circuit | None = None  #: of a run of pruning
    plan: DeletionPlan | None = None  #: of a run of pruning
    made: Made | None = None  #: settings and environment, where they are known
    notes: tuple[str, ...] = ()  #: what is not shown and why, a sentence each without its full stop
    is_peer: bool = False  #: from a file of benchmarks.peers

    @property
    def task(self) -> str | None:
        """The kind of the models' answers; None where there are no models, or these may be of any kind."""
        return None if self.made is None or not self.points else str(self.made["settings"].get("task", "classes"))


def read_run(folder: Path, name: str) -> Run:
    """name: of the folder, on the page. Raises UserError for anything but the folder of a finished run."""
    readers = {REPORT: _read_report, SWEEP: _read_sweep, ROUNDS: _read_rounds}
    try:
        runs = [read(folder / file, name) for file, read in readers.items() if (folder / file).exists()]
    except DAMAGES as error:
        raise UserError(f"{folder} has a damaged report ({error!r}): {_ADVICE}") from error
    if not runs:
        raise UserError(
            f"{folder} has none of {REPORT}, {SWEEP} and {ROUNDS}: give folders of finished runs of vitfx.prune or "
            "vitfx.recover"
        )
    points = tuple(point for run in runs for point in run.points)
    if not points:
        raise UserError(f"{folder} has no model yet: {_ADVICE}")
    return replace(runs[0], points=points)


def _read_report(path: Path, name: str) -> Run:
    advice = "give folders that vitfx.prune or vitfx.recover wrote"
    format, record = read_any_json(path, (PRUNE_REPORT, RECOVER_REPORT), advice)
    if format == RECOVER_REPORT:
        recover = cast(RecoverReport, record)
        return Run(name, points_of_recover(recover), recover=recover, made=recover)
    prune = cast(PruneReport, record)
    circuit, plan, notes = _circuit(path.parent)
    return Run(name, points_of_prune(prune), prune, circuit=circuit, plan=plan, made=prune, notes=notes)


def _read_sweep(path: Path, name: str) -> Run:
    sweep = cast(SweepRecord, read_json(path, SWEEP_RECORD, _ADVICE))
    return Run(name, points_of_sweep(sweep), made=sweep)


def _read_rounds(path: Path, name: str) -> Run:
    rounds = cast(RoundsRecord, read_json(path, ROUNDS_RECORD, _ADVICE))
    return Run(name, points_of_rounds(rounds), made=rounds)


def _circuit(folder: Path) -> tuple[Circuit | None, DeletionPlan | None, tuple[str, ...]]:
    """The circuit and its plan where they are there, and why they are not shown where they can't be used."""
    if not (folder / CIRCUIT).exists():
        return None, None, ()
    try:
        circuit = read_circuit(folder / CIRCUIT)
        read_sublayers(circuit)
        return circuit, read_plan(folder) if (folder / PLAN).exists() else None, ()
    except UserError as error:
        return None, None, (f"What died is not shown: {as_options(str(error))}",)


def number(row: Mapping[str, object], key: str) -> float:
    """A finite one. Raises KeyError, and ValueError for anything else."""
    value = row[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"{key} is {value!r}")
    return float(value)

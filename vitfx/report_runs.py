"""The folders that a comparison is of: what each has reached, in time against its own baseline."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from passes.plan import DeletionPlan
from vitfx.circuit import Circuit
from vitfx.circuit_file import read_circuit
from vitfx.errors import UserError
from vitfx.plan_file import PLAN, read_plan

REPORT, SWEEP, CIRCUIT = "report.json", "sweep.json", "circuit.json"
PRUNE, RECOVER = "prune", "recover"


@dataclass(frozen=True)
class Reached:
    """A model of a run. time: as a share of the run's own baseline, measured beside it; where says on what. accuracy:
    0..1, None without labels; kl, agreement: against the original. params, flops: shares that are left.
    swept: one of a front, whose points belong together."""

    name: str
    accuracy: float | None
    agreement: float
    kl: float
    time: float
    where: str
    params: float
    flops: float
    swept: bool = False


@dataclass(frozen=True)
class Run:
    """name: as the user gave the folder. kind: of the report, "prune" or "recover"; None where there is none."""

    name: str
    points: tuple[Reached, ...]
    kind: str | None = None
    report: Mapping[str, Any] | None = None
    circuit: Circuit | None = None
    plan: DeletionPlan | None = None


def read_run(folder: Path) -> Run:
    """Raises UserError for anything but the folder of a finished run."""
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: give folders that vitfx.prune or vitfx.recover wrote")
    report, sweep = _read(folder / REPORT), _read(folder / SWEEP)
    if report is None and sweep is None:
        raise UserError(
            f"{folder} has neither {REPORT} nor {SWEEP}: give folders of finished runs of vitfx.prune or vitfx.recover"
        )
    kind = None if report is None else kind_of(report)
    if report is not None and kind is None:
        raise UserError(
            f"{folder / REPORT} is a report of neither vitfx.prune nor vitfx.recover: give folders that they wrote"
        )
    try:
        points = (
            *(() if report is None or kind is None else points_of(report, kind)),
            *(() if sweep is None else _swept(sweep)),
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError, IndexError, AttributeError) as error:
        raise UserError(f"{folder} has a damaged report ({error!r}): give the folder of a finished run") from error
    circuit = read_circuit(folder / CIRCUIT) if kind == PRUNE and (folder / CIRCUIT).exists() else None
    plan = read_plan(folder) if circuit is not None and (folder / PLAN).exists() else None
    return Run(str(folder), points, kind, report, circuit, plan)


def _read(path: Path) -> Mapping[str, Any] | None:
    """None where there is no such file."""
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be read ({error}): give the folder of a finished run") from error
    if not isinstance(record, dict):
        raise UserError(f"{path} is no report of vitfx: give the folder of a finished run")
    return record


def kind_of(report: Mapping[str, Any]) -> str | None:
    """Which command wrote it, None for any other."""
    if {"baseline", "pruned", "speedup_by_batch", "circuit"} <= report.keys():
        return PRUNE
    return RECOVER if {"models", "recovery"} <= report.keys() else None


def points_of(report: Mapping[str, Any], kind: str) -> tuple[Reached, ...]:
    """The models of a report, the baseline first."""
    return _pruned(report) if kind == PRUNE else _recovered(report)


def _pruned(report: Mapping[str, Any]) -> tuple[Reached, ...]:
    old, new, third = report["baseline"], report["pruned"], report.get("precision")
    batch = max(report["speedup_by_batch"], key=int)
    where = f"batch {batch}, {_runtime(report['runtime'])}"
    left = (new["params"] / old["params"], new["flops"] / old["flops"])
    found = [
        Reached("baseline", old["accuracy"], 1.0, 0.0, 1.0, where, 1.0, 1.0),
        Reached(
            "pruned", new["accuracy"], report["agreement"], report["kl"], 1 / report["speedup"], where, left[0], left[1]
        ),
    ]
    if third is not None:
        time = 1 / third["speedup_by_batch"][batch]
        values = (third["accuracy"], third["agreement"], third["kl"], time, where, *left)
        found.append(Reached(f"pruned, {third['name']}", *values))
    return tuple(found)


def _recovered(report: Mapping[str, Any]) -> tuple[Reached, ...]:
    models = report["models"]
    whole, runtime = models[0], next(iter(models[0]["runtimes"]))
    seconds = whole["runtimes"][runtime]["evaluation_seconds"]
    return tuple(
        Reached(
            one["name"],
            one["accuracy"],
            one["agreement"],
            one["kl"],
            one["runtimes"][runtime]["evaluation_seconds"] / seconds,
            f"{report['images']['evaluation']} images, {_runtime(runtime)}",
            one["params"] / whole["params"],
            one["flops"] / whole["flops"],
        )
        for one in models
    )


def _swept(sweep: Mapping[str, Any]) -> tuple[Reached, ...]:
    points, where = sweep["points"], str(sweep["settings"]["target"])
    if not points:
        return ()
    plain = Reached("plain export", points[0]["plain_accuracy"], 1.0, 0.0, 1.0, where, 1.0, 1.0, swept=True)
    found = [
        Reached(
            "exact rewrites" if one["asked"] is None else f"asked for {one['asked']:g}×",
            one["accuracy"],
            one["agreement"],
            one["kl"],
            1 / one["speedup"],
            where,
            one["params"],
            one["flops"],
            swept=True,
        )
        for one in points
    ]
    return (plain, *found)


def _runtime(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider")

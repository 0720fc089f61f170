"""The models of runs as points: what each has reached, in time against its own baseline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PRUNE, RECOVER = "prune", "recover"


@dataclass(frozen=True)
class Reached:
    """A model of a run. time: as a share of the run's own baseline, measured beside it; where says on what. accuracy:
    0..1, None without labels; kl, agreement: against the original. params, flops: shares that are left.
    joined: one of a row of models, through which a line runs. knee: where the row's front bends."""

    name: str
    accuracy: float | None
    agreement: float
    kl: float
    time: float
    where: str
    params: float
    flops: float
    joined: bool = False
    knee: bool = False


def plain_export(accuracy: float | None, where: str) -> Reached:
    """What the times of sweeps, rounds and peers are shares of."""
    return Reached("plain export", accuracy, 1.0, 0.0, 1.0, where, 1.0, 1.0, joined=True)


def kind_of(report: Mapping[str, Any]) -> str | None:
    """Which command wrote a report.json, None for any other."""
    if {"baseline", "pruned", "speedup_by_batch", "circuit"} <= report.keys():
        return PRUNE
    return RECOVER if {"models", "recovery"} <= report.keys() else None


def points_of(report: Mapping[str, Any], kind: str) -> tuple[Reached, ...]:
    """The models of a report, the baseline first."""
    return _pruned(report) if kind == PRUNE else _recovered(report)


def _pruned(report: Mapping[str, Any]) -> tuple[Reached, ...]:
    old, new, third = report["baseline"], report["pruned"], report["precision"]
    speedups = report["speedup_by_batch"]
    # Reports of earlier versions do not name it: it was the largest.
    batch = str(report.get("batch", max(speedups, key=int)))
    where = f"batch {batch}, {_runtime(report['runtime'])}"
    left = (new["params"] / old["params"], new["flops"] / old["flops"])
    found = [
        Reached("baseline", old["accuracy"], 1.0, 0.0, 1.0, where, 1.0, 1.0),
        Reached(
            "pruned", new["accuracy"], report["agreement"], report["kl"], 1 / speedups[batch], where, left[0], left[1]
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


def points_of_sweep(sweep: Mapping[str, Any]) -> tuple[Reached, ...]:
    """Of a sweep.json, with the knee that was found there; nothing where there is no point yet."""
    points, where, bend = sweep["points"], str(sweep["settings"]["target"]), sweep["knee"]
    if not points:
        return ()
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
            joined=True,
            knee=bool(bend.get("found")) and one["asked"] == bend["asked"],
        )
        for one in points
    ]
    return (plain_export(points[0]["plain_accuracy"], where), *found)


def points_of_rounds(rounds: Mapping[str, Any]) -> tuple[Reached, ...]:
    """Of a rounds.json, in the order of the steps; nothing where there is none yet."""
    steps, where = rounds["steps"], str(rounds["settings"]["target"])
    if not steps:
        return ()
    found = [
        Reached(
            f"round {one['round']}, {one['kind']}",
            one["accuracy"],
            one["agreement"],
            one["kl"],
            1 / one["speedup"],
            where,
            one["params_share"],
            one["flops_share"],
            joined=True,
        )
        for one in steps
    ]
    return (plain_export(steps[0]["plain_accuracy"], where), *found)


def _runtime(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider")


KNEE_RULE = (
    "the point that lies farthest below the straight line from the first to the last point, in KL over time, both as "
    "shares of their ranges"
)

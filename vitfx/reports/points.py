"""The models of runs as points: what each has reached, in time against its own baseline."""

from __future__ import annotations

from dataclasses import dataclass, replace

from vitfx.graph.kinds import WORDS, KindWords, words_of
from vitfx.reports.records import PointRecord, PruneReport, RecoverReport, RoundsRecord, SweepRecord


@dataclass(frozen=True)
class ModelPoint:
    """A model of a run."""

    name: str
    accuracy: float | None  #: 0..1, None without labels
    agreement: float | None  #: with the original
    kl: float  #: from the original
    time: float  #: as a share of the run's own baseline, measured beside it
    where: str  #: on what it was timed
    params: float  #: share that is left
    flops: float  #: share that is left
    joined: bool = False  #: one of a row of models, through which a line runs
    knee: bool = False  #: where the row's front bends
    words: KindWords = WORDS["classes"]  #: for accuracy and KL


def plain_export(accuracy: float | None, where: str) -> ModelPoint:
    """What the times of sweeps, rounds and peers are shares of."""
    return ModelPoint("plain export", accuracy, 1.0, 0.0, 1.0, where, 1.0, 1.0, joined=True)


def points_of_prune(report: PruneReport) -> tuple[ModelPoint, ...]:
    """The baseline first."""
    old, new, third = report["baseline"], report["pruned"], report["precision"]
    batch = str(report["batch"])
    where = f"batch {batch}, {_runtime(report['runtime'])}"
    words = words_of(report["settings"])
    alike = None if report["agreement"] is None else 1.0
    baseline = ModelPoint("baseline", old["accuracy"], alike, 0.0, 1.0, where, 1.0, 1.0, words=words)
    pruned = ModelPoint(
        "pruned", new["accuracy"], report["agreement"], report["kl"], 1 / report["speedup_by_batch"][batch], where,
        new["params"] / old["params"], new["flops"] / old["flops"], words=words,
    )  # fmt: skip
    if third is None:
        return baseline, pruned
    return baseline, pruned, replace(
        pruned, name=f"pruned, {third['name']}", accuracy=third["accuracy"], agreement=third["agreement"],
        kl=third["kl"], time=1 / third["speedup_by_batch"][batch],
    )  # fmt: skip


def points_of_recover(report: RecoverReport) -> tuple[ModelPoint, ...]:
    """The unpruned model first."""
    models = report["models"]
    whole, runtime = models[0], next(iter(models[0]["runtimes"]))
    words = words_of(report["settings"])
    return tuple(
        ModelPoint(
            model["name"],
            model["accuracy"],
            model["agreement"],
            model["kl"],
            model["runtimes"][runtime]["evaluation_seconds"] / whole["runtimes"][runtime]["evaluation_seconds"],
            f"{report['images']['evaluation']} images, {_runtime(runtime)}",
            model["params"] / whole["params"],
            model["flops"] / whole["flops"],
            words=words,
        )
        for model in models
    )


def points_of_sweep(sweep: SweepRecord) -> tuple[ModelPoint, ...]:
    """With the knee that was found; nothing where there is no point yet."""
    points, where, knee = sweep["points"], str(sweep["settings"]["target"]), sweep["knee"]
    models = [
        replace(
            _beside_plain(point, where, point["params"], point["flops"]),
            name="exact rewrites" if point["asked"] is None else f"asked for {point['asked']:g}×",
            knee=knee["found"] and point["asked"] == knee["asked"],
        )
        for point in points
    ]
    return (plain_export(points[0]["plain_accuracy"], where), *models) if points else ()


def points_of_rounds(rounds: RoundsRecord) -> tuple[ModelPoint, ...]:
    """In the order of the steps; nothing where there is none yet."""
    steps, where = rounds["steps"], str(rounds["settings"]["target"])
    models = [
        replace(
            _beside_plain(step, where, step["params_share"], step["flops_share"]),
            name=f"round {step['round']}, {step['kind']}",
        )
        for step in steps
    ]
    return (plain_export(steps[0]["plain_accuracy"], where), *models) if steps else ()


def _beside_plain(record: PointRecord, where: str, params: float, flops: float) -> ModelPoint:
    return ModelPoint(
        "", record["accuracy"], record["agreement"], record["kl"], 1 / record["speedup"], where, params, flops,
        joined=True,
    )  # fmt: skip


def _runtime(provider: str) -> str:
    return provider.removesuffix("ExecutionProvider")


KNEE_RULE = (
    "the point that lies farthest below the straight line from the first to the last point, in KL over time, both as "
    "shares of their ranges"
)

"""The JSON records that commands write and reports read, with the `format` that each file has.

Where a record is made of other classes' `to_json`, it lists what reports read of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

PRUNE_REPORT = "vitfx-prune-report/1"
RECOVER_REPORT = "vitfx-recover-report/1"
OPTIMIZE_REPORT = "vitfx-optimize-report/1"
TRAIN_REPORT = "vitfx-train-report/1"
SWEEP_RECORD = "vitfx-sweep/1"
ROUNDS_RECORD = "vitfx-rounds/1"
PEERS_RECORD = "vitfx-peers/1"
RUNTIMES_RECORD = "vitfx-runtimes/1"
TASKS_RECORD = "vitfx-tasks/1"

Facts = Mapping[str, Any]
"""Names and values that are listed as they are, such as settings."""


class Made(TypedDict):
    """What every record says of how it was made."""

    settings: Facts
    environment: Facts  #: versions and the machine, empty before the first measurement


class Side(TypedDict):
    """The baseline or the pruned model."""

    loss: float | None  #: in nats, None without labels
    accuracy: float | None  #: top-1 (of other kinds `vitfx.graph.metrics.right`), 0..1, None without labels
    #: of it, that on the images of the chosen classes and that on all others', where these have a logit
    accuracy_by_choice: NotRequired[list[float | None]]
    mean_average_precision: NotRequired[float]  #: of several labels, 0..1
    params: int
    flops: int  #: of an image
    heads: int
    mlp_neurons: int
    sublayers: int
    latency_ms: dict[str, float]  #: medians by batch
    latency_spread_ms: dict[str, list[float]]  #: tenth and ninetieth percentiles by batch
    evaluation_seconds: float  #: over all evaluation images


class PrecisionRecord(TypedDict):
    """A third ONNX file, in other numbers than float32; times are against the float32 baseline."""

    name: str  #: "int8", "fp16" or "bf16"
    file: str
    quantized: NotRequired[int]  #: linear maps
    kept: NotRequired[list[str]]  #: operators that stay in float32
    images: NotRequired[int]  #: that the ranges were calibrated on
    accuracy: float | None
    accuracy_by_choice: NotRequired[list[float | None]]
    mean_average_precision: NotRequired[float]
    kl: float
    agreement: float | None
    latency_ms: dict[str, float]
    speedup_by_batch: dict[str, float]
    time_of_fp32: NotRequired[dict[str, float]]  #: as a part of pruned.onnx's, by batch


class CircuitRecord(TypedDict):
    source: str | None  #: the file that it came from, None where this run discovered it
    method: str
    granularity: str
    kl: float  #: of the circuit, in nats an image, on the calibration images
    artifact_kl: float | None  #: of what was built from it
    edges: int
    removed: int
    fingerprint: str
    fidelity: Facts | None  #: of the circuit as it is, on the calibration images
    calibration: Facts | None


class PruneReport(Made):
    """report.json of `vitfx.prune`."""

    baseline: Side
    pruned: Side
    kl: float  #: from the baseline, in nats an image; of other kinds of answers their divergence
    agreement: float | None  #: share of the images with the baseline's top-1, see `vitfx.graph.metrics.alike`
    speedup: float  #: at `batch`
    batch: int  #: at which the speed-up counts
    speedup_by_batch: dict[str, float]
    runtime: str  #: ONNX Runtime's provider
    images: dict[str, int]  #: for "calibration" and "evaluation", and "skipped" as corrupt
    circuit: CircuitRecord
    compensation: Facts
    verify: Facts
    deployment: Facts
    precision: PrecisionRecord | None
    notes: list[str]


class RecoveredModel(TypedDict):
    """A row of the table of models before and after retraining."""

    name: str
    loss: float | None
    accuracy: float | None
    #: of it, that on the images of the chosen classes and that on all others', where these have a logit
    accuracy_by_choice: NotRequired[list[float | None]]
    kl: float
    agreement: float | None
    params: int
    flops: int
    runtimes: dict[str, dict[str, float]]  #: by provider: evaluation_seconds, ms_per_image, ms_at_batch_1


class CheckRecord(TypedDict):
    """A look at held-out images; kl and agreement are from and with the teacher."""

    images: int  #: seen in training so far
    loss: float | None
    accuracy: float | None
    kl: float
    agreement: float | None


class FlowStep(TypedDict):
    images: int  #: seen before the step
    mean: list[float]  #: of the absolute gradients, by layer


class Flow(TypedDict):
    layers: list[str]  #: from the image to the logits
    steps: list[FlowStep]


class CourseRecord(TypedDict):
    """A retraining."""

    checks: list[CheckRecord]
    best: int  #: the position of the check whose weights are kept
    steps: int
    seconds: float
    trained_parameters: int
    highest_rate: NotRequired[float]  #: of AdamW; records before version 0.7 lack it
    precision: str
    augment: str
    told: list[str]
    gradient_flow: Flow
    losses: list[float]  #: means of stretches of steps
    sentence: str  #: what was kept


class RecoverImages(TypedDict):
    training: int
    held_out: int
    labelled: bool
    evaluation: int
    skipped: int


class RecoverReport(Made):
    """report.json of `vitfx.recover`."""

    made_by: str
    models: list[RecoveredModel]  #: the unpruned one first
    recovery: CourseRecord
    baseline_recovery: CourseRecord | None  #: the unpruned model's own retraining
    won_back: float | None  #: share of the accuracy that pruning cost
    images: RecoverImages


class RewriteRecord(TypedDict):
    name: str
    changed: bool  #: whether there was anything to do
    error: float | None  #: of the logits, relative, in float64
    notes: list[str]
    alone: dict[str, float]  #: time as a part of the canonical graph's, by batch


class OptimizeReport(Made):
    """report.json of `vitfx.optimize`."""

    model: str
    model_fingerprint: str
    images: Facts  #: their "count" and what they are "of"
    baseline: str  #: what baseline.onnx is
    form: str  #: that was kept
    portable: bool
    time_left: dict[str, float]  #: as a part of the baseline's, by batch
    latency_ms: dict[str, dict[str, dict[str, float]]]  #: by batch and by "baseline" or "optimized"
    forms: dict[str, dict[str, float]]  #: time left with all rewrites, by form and batch
    rewrites: list[RewriteRecord]
    verify: dict[str, float]  #: "float64", "onnx" and "pt2"
    precision: Facts | None  #: of a third file: how it was made, what int8 costs and its times
    notes: list[str]


class PointRecord(TypedDict):
    """A model of a sweep or of rounds, measured beside the plain export of the original."""

    speedup: float
    kl: float
    agreement: float | None
    accuracy: float | None
    plain_accuracy: float | None


class SweepPoint(PointRecord):
    asked: float | None  #: speed-up, None for exact rewrites alone
    params: float  #: share that is left
    flops: float  #: share that is left


class Knee(TypedDict):
    asked: float | None
    found: bool


class SweepRecord(Made):
    """sweep.json."""

    knee: Knee
    points: list[SweepPoint]


class RoundStep(PointRecord):
    round: int
    kind: str  #: "pruned" or "recovered"
    params_share: float
    flops_share: float


class RoundsRecord(Made):
    """rounds.json."""

    steps: list[RoundStep]


class PeersRecord(TypedDict):
    """What `benchmarks.peers` writes."""

    asked: Facts
    rows: Mapping[str, Facts]


class RuntimesRecord(Made):
    """What `benchmarks.runtimes` writes."""

    models: list[Facts]
    latency: list[Facts]


class TaskCircuit(TypedDict):
    """The circuit of a task, with those of other seeds."""

    name: str
    classes: list[str] | None  #: None for all of the model's
    file: str
    fingerprint: str
    origins: Mapping[str, str]
    kl: float  #: of the circuit, in nats an image, on the calibration images
    edges: int
    removed: int
    dead: dict[str, list[float]]  #: of "heads" and "paths", how many on average over seeds, and of how many
    fidelity: Facts  #: on the calibration images
    evaluation: Facts | None  #: likewise on held-out images
    alive: list[dict[str, list[Any]]]  #: seed by seed, see `vitfx.discovery.task_overlap.Alive`
    heads: dict[str, float]  #: by head, the share of seeds with which it lives
    seconds: float


class TasksRecord(Made):
    """tasks.json of `vitfx.discover`."""

    tasks: list[TaskCircuit]
    overlap: dict[str, list[list[dict[str, Any]]]]  #: of "heads" and "paths", task by task: Jaccard's mean and spread

"""What circuit.json says about a circuit besides its edges: `Circuit.details`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NotRequired, TypedDict


class Fidelity(TypedDict):
    """How faithful a circuit is, run edge by edge."""

    images: int
    kl: float  #: mean D_KL(G‖H) in nats, or the divergence of another kind of answers
    agreement: float | None  #: share of images with the whole model's top-1; of other kinds `vitfx.graph.metrics.alike`
    accuracy: float | None  #: top-1, of other kinds `vitfx.graph.metrics.right`; None without labels
    whole_accuracy: float | None  #: the whole model's


class ForecastAccuracy(TypedDict):
    """How well EAP-ACDC's forecasts agree with measurement, over edges drawn at random."""

    edges: int
    rank_correlation: float | None  #: Spearman's; None if all forecasts, or all costs, are equal
    agreement: float  #: share of edges on which both decide alike at τ
    scale: float  #: median of measured by forecast


class ForecastCalibration(TypedDict, total=False):
    """Edges written by heads and by MLP paths apart; absent where too few were drawn."""

    heads: ForecastAccuracy
    paths: ForecastAccuracy


class Overlap(TypedDict):
    """The mean over pairs of runs of |both| / |either|."""

    edges: float
    heads: float
    neurons: float


class KeptBy(TypedDict):
    """How many were kept in 0, 1, … R of R runs."""

    edges: list[float]
    heads: list[float]
    neurons: list[float]


class Stability(TypedDict):
    """How much of a circuit other calibration images and seeds would have found again."""

    repeats: int
    overlap: Overlap
    kept_by: KeptBy
    seeds: list[int]
    kl: list[float]
    survival: dict[str, float]  #: share of runs in which each writer survived; of a path, the mean over its neurons
    edges: NotRequired[dict[str, float]]  #: block and head graph: share of runs that kept each edge
    by_writer: NotRequired[dict[str, float]]  #: edge and qkv graph: the same, the mean over each writer's edges
    other_images: NotRequired[bool]  #: whether the runs had different images, and not only different seeds


class Halves(TypedDict):
    """What random halves of the calibration images agree on."""

    runs: int
    certain: float | None  #: edges that fewer than this share of the halves removed were kept; None: none was
    kept_after_all: int  #: how many edges that were
    unsure: dict[str, float]  #: edges that some halves removed and others kept, with the share that removed them
    unsure_units: dict[str, float]  #: heads and paths that are dead in some halves and alive in others, likewise


class Abstention(TypedDict):
    """What a circuit is worth on held-out images, with and without the edges that it keeps for want of agreement."""

    abstaining: Fidelity
    removing: Fidelity  #: the circuit as it was found on all calibration images


Details = TypedDict(
    "Details",
    {
        "fidelity": Fidelity,  #: on the calibration images
        "evaluation": Fidelity,  #: on held-out images
        "calibration": ForecastCalibration,
        "stability": Stability,
        "halves": Halves,
        "abstention": Mapping[str, Abstention],  #: on held-out images as they are, and shifted, by the kind of shift
        "price": Mapping[str, object],  #: of a circuit found for a goal: what it costs, as predicted and as measured
        "held out": Mapping[str, object],  #: of the same: what it loses on images that it was not fitted on
        "healing": Mapping[str, object],  #: of a goal: the training, and what is lost on these before and after
    },
    total=False,
)
"""What a method has to say about its circuit."""

"""What `vitfx.prune` can be asked for: a checked command line, with the model and the data open."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import torch

from vitfx.circuits.circuit import Circuit
from vitfx.deploy.deployment import Deployment
from vitfx.deploy.precisions import FP32, ONNX_RUNTIME
from vitfx.discovery.basis.settings import Settings
from vitfx.images.image_set import Images, ImageSet
from vitfx.models.chosen import chosen_record
from vitfx.pruning.goal import SPEEDUP, Goal, Target
from vitfx.pruning.target_bench import ReferenceModel
from vitfx.runs.inputs import Inputs
from vitfx.runs.rounds_steps import Rounds
from vitfx.support.devices import pick_device
from vitfx.support.progress import Watcher

BATCHES = (1, 64)
"""At which times are measured, whatever the run is for."""


@dataclass(frozen=True, kw_only=True)
class _Run:
    """What all runs have in common."""

    inputs: Inputs
    evaluation: ImageSet  #: what the models are measured on
    device: torch.device  #: where circuits are discovered, units scored and survivors fitted
    out: Path
    force: bool
    deployment: Deployment  #: how pruned.onnx is made
    #: by what schedule tokens merge, see `vitfx.pruning.token_merging.choose_merging`
    tokens: str | None = None


@dataclass(frozen=True, kw_only=True)
class CircuitRun(_Run):
    """Deletes what is dead in a circuit, which is discovered or comes from a file."""

    settings: Settings  #: of the discovery
    circuit: Circuit | None = None  #: replaces the discovery
    circuit_file: Path | None = None  #: that the circuit was read from
    compensate: str = "ridge"  #: one of `vitfx.pruning.compensation.KINDS`
    compensate_samples: int  #: images that survivors are refitted on, at most
    precision: str = FP32  #: of a third ONNX file, none for "fp32"

    @property
    def seed(self) -> int:
        return self.settings.seed

    @property
    def onnx_device(self) -> torch.device:
        """Where ONNX files run."""
        return self.device

    @property
    def runtime(self) -> str:
        """What runs them."""
        return ONNX_RUNTIME

    @property
    def batch(self) -> int:
        """The batch size that the report's speed-up is for."""
        return max(BATCHES)


class Basis(TypedDict):
    """All that the models of a sweep or of rounds depend on, but the machine."""

    model: str
    arch: str | None
    data: str
    samples: int
    seed: int
    target: str
    deployment: dict[str, Any]
    device: str
    vitfx: str
    torch: str
    model_fingerprint: str
    images: str  #: sha256 of the calibration images
    evaluation_fingerprint: str
    classes: NotRequired[list[str]]  #: those that were chosen
    other: NotRequired[bool]  #: whether the last of them stands for all others


@dataclass(frozen=True, kw_only=True)
class _TargetRun(_Run):
    """What all runs have in common that look for models of a given cost and time them on a target."""

    target: Target
    samples: int  #: calibration images
    seed: int  #: of the images and of scoring
    memory: float | None = None  #: GiB at most for streams that are kept between cuts; None for no limit

    @property
    def onnx_device(self) -> torch.device:
        """Where ONNX files run."""
        return pick_device(self.target.device)

    @property
    def runtime(self) -> str:
        """What runs them."""
        return self.target.runtime

    @property
    def batch(self) -> int:
        """The batch size that speed-ups are for."""
        return self.target.batch

    def calibration(self, watcher: Watcher) -> Images:
        """Raises UserError."""
        self.inputs.tell(watcher, self.device, f"; times are of {self.target}")
        return self.inputs.calibration(self.samples, self.seed, watcher.bar("loading"))

    def basis(self, origins: Mapping[str, str], samples: int) -> Basis:
        """origins: of the original, see `vitfx.discovery.run.origins`. samples: calibration images that are whole."""
        return {
            "model": self.inputs.model.source,
            "arch": self.inputs.arch,
            "data": self.inputs.data,
            "samples": samples,
            "seed": self.seed,
            "target": str(self.target),
            "deployment": self.deployment.to_json(),
            "device": str(self.device),
            "vitfx": origins["vitfx"],
            "torch": origins["torch"],
            "model_fingerprint": origins["model"],
            "images": origins["images"],
            "evaluation_fingerprint": self.evaluation.fingerprint(),
            **chosen_record(self.inputs.model),  # type: ignore[typeddict-item]
        }


@dataclass(frozen=True, kw_only=True)
class GoalRun(_TargetRun):
    """Prunes until a goal is reached."""

    goal: Goal
    precision: str = FP32  #: of a third ONNX file, none for "fp32"
    heal_minutes: float = 0.0  #: for which what is left is trained towards the original; 0 for not at all
    further: bool = False  #: whether the final refit and the verdict may take more images than `samples`
    reference: ReferenceModel | None = None  #: what the goal is counted from, None for the model itself


@dataclass(frozen=True, kw_only=True)
class SweepRun(_TargetRun):
    """Makes models of several speed-ups, each from the one before."""

    speedups: tuple[float, ...]  #: rising

    @property
    def goal(self) -> Goal:
        """The fastest."""
        return Goal(SPEEDUP, self.speedups[-1])


@dataclass(frozen=True, kw_only=True)
class RoundsRun(_TargetRun):
    """Prunes in several rounds and retrains after each."""

    goal: Goal  #: of the last round
    rounds: Rounds
    command: str  #: as a user would type it


PruneRun = CircuitRun | GoalRun | SweepRun | RoundsRun

"""A training's saved state: weights, optimizer, schedule, scaler, average, and the log.

It does not need torch's generators: every step, every image and every epoch's order has a seed of its own
(`vitfx.support.seeds`), so that the number of the step determines all random draws.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypedDict

import torch

from vitfx.models.model_file import read_model_file, write_record
from vitfx.support.errors import UserError
from vitfx.support.files import TRAINING_STATE
from vitfx.support.json_files import write_json
from vitfx.support.typed import TypeMismatch, typed

STATE = TRAINING_STATE
FORMAT, HISTORY_FORMAT = "vitfx-training/1", "vitfx-history/1"


@dataclass(frozen=True)
class Epoch:
    """What is logged of an epoch."""

    number: int  #: from 1
    train_loss: float  #: mean of the steps' losses, on mixed and smoothed targets
    loss: float  #: on the validation images
    accuracy: float  #: on the validation images
    lr: float  #: of the next step
    images_per_second: float  #: while training
    flow: dict[str, list[float]]  #: mean and greatest absolute gradient by layer, in the model's order


@dataclass
class Log:
    """A training so far."""

    losses: list[float] = field(default_factory=list)  #: of every step
    epochs: list[Epoch] = field(default_factory=list)
    seconds: float = 0.0  #: of all runs together

    @property
    def best(self) -> Epoch | None:
        """The epoch with the highest accuracy, the first among equals."""
        return max(self.epochs, key=lambda epoch: epoch.accuracy, default=None)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(record: dict[str, Any]) -> Log:
        return Log(list(record["losses"]), [Epoch(**epoch) for epoch in record["epochs"]], record["seconds"])


class _Epoch(TypedDict):
    number: int
    train_loss: float
    loss: float
    accuracy: float
    lr: float
    images_per_second: float
    flow: dict[str, list[float]]


class _Log(TypedDict):
    losses: list[float]
    epochs: list[_Epoch]
    seconds: float


class _State(TypedDict):
    key: str
    log: _Log
    parts: dict[str, Any]


def write_state(path: Path, key: str, log: Log, parts: dict[str, Any]) -> None:
    """Replaces the file in one go: a reader, or a crash, finds the old or the new one whole. Raises WriteError."""
    write_record(path, {"format": FORMAT, "key": key, "log": log.to_json(), "parts": parts})


def read_state(path: Path, key: str, *, force: bool) -> tuple[Log, dict[str, Any]] | None:
    """What `write_state` wrote, on the CPU; None where there is no file, and always with force.

    key: everything that the run depends on. Raises UserError where the file has another, or can't be read.
    """
    if force or not path.exists():
        return None
    record = read_model_file(path, trust_pickle=False)
    steps = 0
    if isinstance(record, dict) and record.get("format") == FORMAT:
        try:
            state = typed(record, _State, "the state")
        except TypeMismatch as error:
            raise UserError(f"{path} is damaged ({error}): give `force` to start over") from error
        if state["key"] == key:
            return Log.from_json(state["log"]), state["parts"]
        steps = len(state["log"]["losses"])
    raise UserError(
        f"{path} is of a training that was stopped after {steps} steps, with other settings, images or weights: "
        "give the same ones to go on, another folder with `out`, or `force` to start over"
    )


def write_history(path: Path, log: Log, layers: list[str]) -> None:
    """The log as JSON, for other programs. Raises WriteError."""
    write_json(path, HISTORY_FORMAT, {"layers": layers, **log.to_json()})


def to_cpu(value: Any) -> Any:
    """A state dict with its tensors on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: to_cpu(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(to_cpu(item) for item in value)
    return value

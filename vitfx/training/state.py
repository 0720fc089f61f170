"""All that a training needs to go on: weights, optimizer, schedule, scaler, average, and what was logged so far.

Torch's generators are not in it. Every step, every image and every epoch's order begins with a seed of its own
(`vitfx.support.seeds`), so that the number of the step says everything about chance.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from vitfx.models.model_file import read_model_file, write_record
from vitfx.support.errors import UserError
from vitfx.support.files import write_aside

STATE = "state.pt"
_FORMAT = "vitfx-training/1"


@dataclass(frozen=True)
class Epoch:
    """train_loss: mean of the steps' losses, on mixed and smoothed targets. loss, accuracy: on the validation images.

    lr: of the step after it. images_per_second: while training. flow: mean and greatest absolute gradient by layer, in
    the model's order.
    """

    number: int
    train_loss: float
    loss: float
    accuracy: float
    lr: float
    images_per_second: float
    flow: dict[str, list[float]]


@dataclass
class Log:
    """losses: of every step so far. seconds: of all runs together. best: the epoch with the highest accuracy, the first
    of equals.
    """

    losses: list[float] = field(default_factory=list)
    epochs: list[Epoch] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def best(self) -> Epoch | None:
        return max(self.epochs, key=lambda one: one.accuracy, default=None)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def from_json(record: dict[str, Any]) -> Log:
        return Log(list(record["losses"]), [Epoch(**one) for one in record["epochs"]], record["seconds"])


def write_state(path: Path, key: str, log: Log, parts: dict[str, Any]) -> None:
    """Replaces the file at once: a reader, or a crash, finds the old or the new one whole. Raises WriteError."""
    write_record(path, {"format": _FORMAT, "key": key, "log": log.to_json(), "parts": parts})


def read_state(path: Path, key: str, *, force: bool) -> tuple[Log, dict[str, Any]] | None:
    """What `write_state` wrote, on the CPU; None where nothing was written, or, with force, whatever is there.

    key: everything that the run depends on. Raises UserError where that is another, or the file can't be read.
    """
    if force or not path.exists():
        return None
    record = read_model_file(path, trust_pickle=False)
    known = isinstance(record, dict) and record.get("format") == _FORMAT
    if known and record["key"] == key:
        return Log.from_json(record["log"]), record["parts"]
    steps = len(record["log"]["losses"]) if known else 0
    raise UserError(
        f"{path} is of a training that was stopped after {steps} steps, with other settings, images or weights: "
        "give those to go on with it, another folder with --out, or --force to begin anew"
    )


def write_history(path: Path, log: Log, layers: list[str]) -> None:
    """The log as JSON, for other programs. Raises WriteError."""
    write_aside(path, json.dumps({"layers": layers, **log.to_json()}, indent=1))


def to_cpu(value: Any) -> Any:
    """A state dict with its tensors on the CPU."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, dict):
        return {key: to_cpu(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(to_cpu(one) for one in value)
    return value

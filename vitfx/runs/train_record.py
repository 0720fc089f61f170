"""report.json of `vitfx.train`: what was asked for, the images and the machine, and the result."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, TypedDict

from vitfx.images.pixel_cache import Pixels
from vitfx.runs.train_job import Data, TrainJob
from vitfx.support.machine import environment
from vitfx.training.confusion import Confusion, to_json
from vitfx.training.model import TrainModel
from vitfx.training.state import Log
from vitfx.training.trainer import Trainer


class TrainReport(TypedDict):
    """report.json."""

    made_by: str
    settings: dict[str, Any]
    seeds: dict[str, Any]
    model: dict[str, Any]
    data: dict[str, Any]
    environment: dict[str, Any]
    seconds: float
    epochs: list[dict[str, Any]]
    best: dict[str, Any]  #: the epoch with the highest accuracy
    last: dict[str, Any]  #: the last weights on the validation images, in full precision
    notes: list[str]


def training_report(
    job: TrainJob, made: TrainModel, data: Data, trainer: Trainer, log: Log, last: Confusion, why: str, processes: int
) -> TrainReport:
    """why: the reason for the precision."""
    assert log.best is not None, "a training has an epoch at least"
    config = job.config.to_json()
    # With --init the weights decide the size of the images.
    height, width = made.preprocess.size
    config["model"]["image_size"] = height if height == width else [height, width]
    return {
        "made_by": job.command,
        "settings": {
            **config,
            "data": job.data,
            "init": job.init,
            "arch": job.arch,
            "device": str(job.device),
            "precision": trainer.precision,
            "precision_reason": why,
            "processes": processes,
            "workers": job.workers,
        },
        "seeds": {
            "seed": job.config.training.seed,
            "derived": "weights, each epoch's order, each image's augmentation (epoch, index), each step (process)",
        },
        "model": {
            "factory": made.factory,
            "kwargs": made.kwargs,
            "preprocess": made.preprocess.to_json(),
            "parameters": sum(parameter.numel() for parameter in made.module.parameters()),
            "told": list(made.notes),
        },
        "data": {
            "description": data.description,
            "classes": len(data.classes),
            "training": _described(data.train),
            "validation": _described(data.validation),
        },
        "environment": environment(),
        "seconds": log.seconds,
        "epochs": [{key: value for key, value in asdict(epoch).items() if key != "flow"} for epoch in log.epochs],
        "best": {"epoch": log.best.number, "accuracy": log.best.accuracy},
        "last": to_json(last, data.classes),
        "notes": [
            "epochs are evaluated in the training's precision, last in fp32",
            "best was chosen by its accuracy on the validation images, last was not",
        ],
    }


def _described(pixels: Pixels) -> dict[str, Any]:
    return {"images": len(pixels), "skipped": pixels.skipped, "fingerprint": pixels.fingerprint}

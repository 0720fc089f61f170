"""The report of a training: what was asked for, on what and with what it was done, and what came of it."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from vitfx.images.pixel_cache import Pixels
from vitfx.runs.train_job import Data, TrainJob
from vitfx.support.machine import environment
from vitfx.training.confusion import Confusion, to_json
from vitfx.training.model import TrainModel
from vitfx.training.state import Log
from vitfx.training.trainer import Trainer


def training_report(
    job: TrainJob, made: TrainModel, data: Data, trainer: Trainer, log: Log, last: Confusion, why: str, processes: int
) -> dict[str, Any]:
    """Ready for JSON. last: the last weights on the validation images, in full precision."""
    config = job.config.to_json()
    # Weights that were there bring the size of their images.
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
            "parameters": sum(one.numel() for one in made.module.parameters()),
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
        "epochs": [{key: value for key, value in asdict(one).items() if key != "flow"} for one in log.epochs],
        "best": None if log.best is None else {"epoch": log.best.number, "accuracy": log.best.accuracy},
        "last": to_json(last, data.classes),
        "notes": [
            "epochs are evaluated in the training's precision, last in fp32",
            "best was picked by its accuracy on the validation images, last was not",
        ],
    }


def _described(pixels: Pixels) -> dict[str, Any]:
    return {"images": len(pixels), "skipped": pixels.skipped, "fingerprint": pixels.fingerprint}

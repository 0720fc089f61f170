"""Trainings so small that tests can wait for them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from vitfx.images.arrays import read_digits
from vitfx.train import main

SMALL = ["--width", "16", "--depth", "2", "--heads", "2", "--mlp", "16", "--patch", "4", "--device", "cpu"]


def run(out: Path, *options: str, data: str = "digits", epochs: int = 1) -> int:
    """On the digits, four steps an epoch."""
    few = ["--batch", "350", "--set", "training.warm_up=0"]
    return main(["--data", data, "--out", str(out), "--epochs", str(epochs), *few, *SMALL, *options])


def few(folder: Path) -> Path:
    """75 digits, of which 15 will be held out; written once, as processes may share them."""
    path = folder / "few.npz"
    if not path.exists():
        pixels, labels, _ = read_digits()
        np.savez(path, images=pixels[:75], labels=np.array(labels)[:75].astype(int))
    return path


def run_few(out: Path, *options: str, epochs: int = 1) -> int:
    """On the few digits of the folder that `out` is in, four steps an epoch."""
    data = str(few(out.parent))
    return run(out, "--config", "digits", "--batch", "14", *options, data=data, epochs=epochs)


def history(out: Path) -> dict[str, Any]:
    return json.loads((out / "history.json").read_text())


def report(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text())


def logged(out: Path, tag: str) -> list[tuple[int, float]]:
    """Steps and values that TensorBoard shows."""
    events = EventAccumulator(str(out / "tensorboard")).Reload()
    return [(one.step, one.value) for one in events.Scalars(tag)]


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True)["state_dict"]

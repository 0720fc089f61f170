"""A small model of the digits, a part of it deleted, and few images, for the tests of retraining."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.fx import GraphModule

from passes.plan import DeletionPlan, SublayerDeletion
from passes.stream import read_sites
from tests.support.prune_runs import DIGITS, GREY, model
from vitfx.graph.trace import to_canonical
from vitfx.graph.verify import rewrite
from vitfx.images.arrays import read_digits
from vitfx.images.splits import open_data
from vitfx.models.checkpoint import save_artifact
from vitfx.recovery.data import RecoverData, open_recover_data
from vitfx.recovery.retrain import Recovered, recover
from vitfx.recovery.settings import RecoverSettings
from vitfx.support.progress import Silent

CPU = torch.device("cpu")
GONE = {"a0": (1,), "m0": tuple(range(4, 16)), "m1": tuple(range(16))}
"""A head, most of an MLP, and the whole last sublayer."""


class Heard(Silent):
    """Remembers what it was told."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, sentence: str) -> None:
        self.said.append(sentence)


@cache
def _teacher() -> GraphModule:
    return to_canonical(model(), torch.zeros(2, 1, 8, 8)).graph_module


def teacher() -> GraphModule:
    """The unpruned model, the same one each time."""
    return _teacher()


def student(gone: dict[str, Any] | None = None) -> GraphModule:
    """What is left of it."""
    gone = GONE if gone is None else gone
    deletions = tuple(
        SublayerDeletion(site.name, site.module.kind, gone[site.name], site.module.units)
        for site in read_sites(_teacher())
        if site.name in gone
    )
    return rewrite(_teacher(), DeletionPlan(deletions)).graph_module.eval()


def data(folder: Path, count: int = 64, *, labelled: bool = True) -> RecoverData:
    splits = open_data(str(npz(folder, count, labelled=labelled)), GREY, DIGITS if labelled else None)
    return open_recover_data(splits.calibration, folder, Silent(), held_out=20, samples=10**6, seed=0)


def npz(folder: Path, count: int = 64, *, labelled: bool = True) -> Path:
    """So many digits for training, a fifth as many more for tests."""
    pixels, labels, _ = read_digits()
    total = count * 5 // 4
    path = folder / f"digits-{count}-{labelled}.npz"
    known = {"labels": np.array(labels)[:total].astype(int)} if labelled else {}
    # Processes share it.
    if not path.exists():
        np.savez(path, images=pixels[:total], **known)
    return path


def settings(**changes: Any) -> RecoverSettings:
    """Two epochs of a few steps, of the teacher's logits alone."""
    few: dict[str, Any] = {"epochs": 2, "batch": 16, "augment": "flip", "precision": "fp32", "checks": 4, "lr": 1e-3}
    few["hidden"] = 0.0
    return RecoverSettings(**few | changes)


def run(
    folder: Path, pruned: GraphModule | None = None, images: RecoverData | None = None, **changes: Any
) -> Recovered:
    return recover(
        student() if pruned is None else pruned, teacher(), data(folder, labelled=False) if images is None else images,
        settings(**changes), device=CPU, watcher=Silent(),
    )  # fmt: skip


def pruned_file(path: Path) -> Path:
    save_artifact(path, student(), GREY, DIGITS, "digits", {"circuit_fingerprint": "abc"})
    return path

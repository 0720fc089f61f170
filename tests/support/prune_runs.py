"""The prune command in process, on a small model of the digits, for the tests that look at what it does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vitfx.deploy.export
import vitfx.runs.prune_files
from vitfx.graph.trace import to_canonical
from vitfx.images.preprocess import Preprocess
from vitfx.models.checkpoint import save_artifact, save_checkpoint
from vitfx.models.vit import ViT
from vitfx.prune import main

GREY = Preprocess((8, 8), mean=(0.3,), std=(0.4,))
DIGITS = tuple("0123456789")
SIZES = {"image_size": 8, "patch_size": 4, "channels": 1, "classes": 10, "width": 16, "depth": 2, "heads": 2, "mlp": 16}
EDGES = 1 + 2 * 2 + 2 * 4
"""Of a model with `SIZES` and --paths 4: the embedding's, the heads', the MLP paths'."""


class Stopped(Exception):
    """Ends a run on purpose."""


def model(**changes: Any) -> ViT:
    """Random weights, with logits that are far enough apart for removals to cost something."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = ViT(**SIZES | changes).eval()
    with torch.no_grad():
        for block in made.blocks:
            block.attention.out[0].weight.mul_(3)
            block.mlp[3].weight.mul_(3)
        made.head.weight.mul_(4)
    return made


def checkpoint(path: Path, **changes: Any) -> Path:
    """A vitfx checkpoint of `model()`, with `changes` to what is written."""
    written = {
        "factory": "vitfx.models:ViT",
        "kwargs": SIZES,
        "state_dict": model().state_dict(),
        "preprocess": GREY,
        "classes": DIGITS,
        "data": "digits",
    }
    save_checkpoint(path, **written | changes)
    return path


def artifact(path: Path) -> Path:
    """The same model as vitfx writes it: a canonical graph, which needs no tracing."""
    traced = to_canonical(model(), torch.zeros(2, 1, 8, 8))
    save_artifact(path, traced.graph_module, GREY, DIGITS, "digits", {})
    return path


def picture(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8), dtype=np.uint8)).save(path)


def run(path: Path | str, out: Path, *options: str) -> int:
    """The command's exit code."""
    return run_circuit(path, out, "--samples", "16", "--paths", "4", *options)


def run_circuit(path: Path | str, out: Path, *options: str) -> int:
    """The same without settings: a circuit brings its own."""
    with _quick():
        return main([str(path), "--device", "cpu", "--eval-samples", "50", "--out", str(out), *options])


def discover(path: Path | str, out: Path, *options: str) -> bytes:
    """circuit.json of a run that ends when it would export."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vitfx.runs.prune_files.export_plain", _stop)
        with pytest.raises(Stopped):
            run(path, out, *options)
    return (out / "circuit.json").read_bytes()


def report(out: Path) -> dict[str, Any]:
    return json.loads((out / "report.json").read_text())


def _stop(*_: object) -> None:
    raise Stopped


@contextmanager
def _quick() -> Iterator[None]:
    """One thread, which for such a model is faster; two rounds of timing."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(vitfx.runs.prune_files, "_ROUNDS", 2)
            patch.setattr(vitfx.runs.prune_files, "_SECONDS", 0.0)
            yield
    finally:
        torch.set_num_threads(threads)

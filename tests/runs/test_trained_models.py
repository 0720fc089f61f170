"""Models of newer kinds, trained on the digits in minutes, lose no more than a point with half of their FLOPs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import vitfx
from tests.support.kinds import Behind, Unit
from tests.support.prune_runs import GREY, report, run_circuit
from vitfx.graph.metrics import mean_average_precision
from vitfx.images.arrays import read_digits
from vitfx.images.splits import open_data
from vitfx.models.checkpoint import load_model, save_checkpoint
from vitfx.models.vit import ViT
from vitfx.train import main as train

pytestmark = pytest.mark.slow

ROTARY = (
    "timm:eva02_tiny_patch14_224,patch_size=2,embed_dim=64,depth=6,num_heads=8,mlp_ratio=2.0,norm_layer=rmsnorm,"
    "qk_norm=true,swiglu_mlp=true,use_abs_pos_emb=false"
)
"""Rotary positions, RMSNorm in the stream and of queries and keys, SwiGLU."""
SIZES: dict[str, Any] = {
    "image_size": 8, "patch_size": 2, "channels": 1, "width": 64, "depth": 6, "heads": 8, "mlp": 128,
}  # fmt: skip
LABELS = {"even": {0, 2, 4, 6, 8}, "prime": {2, 3, 5, 7}, "small": {0, 1, 2, 3, 4}, "closed": {0, 6, 8, 9}}


def test_rotary_gated_and_normalised(tmp_path: Path) -> None:
    out = tmp_path / "rotary.pt"
    common = ["--device", "cpu", "--out"]
    assert (
        train(["--data", "digits", "--arch", ROTARY, "--epochs", "40", "--precision", "fp32", *common, str(out)]) == 0
    )
    assert run_circuit(out, tmp_path / "half", "--target-flops", "0.5", "--eval-samples", "0") == 0
    found = report(tmp_path / "half")
    assert found["baseline"]["accuracy"] > 0.95
    assert found["pruned"]["accuracy"] >= found["baseline"]["accuracy"] - 0.01
    assert found["pruned"]["flops"] <= 0.5 * found["baseline"]["flops"]
    assert found["notes"][-1] and not any("not prunable" in note for note in found["notes"])


def learnt(module: nn.Module, pixels: Tensor, loss: Callable[[Tensor, Tensor], Tensor]) -> nn.Module:
    """Forty epochs by AdamW and a cosine. loss: of answers and the positions of their images."""
    epochs, batch = 40, 64
    torch.manual_seed(0)
    steps = epochs * (len(pixels) // batch)
    optimizer = torch.optim.AdamW(module.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    module.train()
    for _ in range(epochs):
        for places in torch.randperm(len(pixels)).split(batch)[: len(pixels) // batch]:
            optimizer.zero_grad()
            loss(module(pixels[places]), places).backward()
            optimizer.step()
            schedule.step()
    return module.eval()


def test_several_labels(tmp_path: Path) -> None:
    pixels, digits, _ = read_digits()
    rows = np.array([[int(int(digit) in own) for own in LABELS.values()] for digit in digits or ()])
    np.savez(tmp_path / "labels.npz", images=pixels, labels=rows)
    images = open_data(str(tmp_path / "labels.npz"), GREY, None, lambda: len(LABELS)).calibration.load()
    assert images.labels is not None
    wanted = images.labels.float()
    kwargs = SIZES | {"classes": len(LABELS)}
    model = learnt(
        ViT(**kwargs, drop_path=0.3), images.pixels,
        lambda logits, places: F.binary_cross_entropy_with_logits(logits, wanted[places]),
    )  # fmt: skip
    path = tmp_path / "labels.pt"
    save_checkpoint(
        path, factory="vitfx.models:ViT", kwargs=kwargs, state_dict=model.state_dict(), preprocess=GREY, classes=None,
        data=str(tmp_path / "labels.npz"),
    )  # fmt: skip
    assert run_circuit(path, tmp_path / "half", "--target-flops", "0.5", "--eval-samples", "0") == 0
    found = report(tmp_path / "half")
    old, new = found["baseline"], found["pruned"]
    assert found["settings"]["task"] == "labels" and old["accuracy"] > 0.95
    assert new["accuracy"] >= old["accuracy"] - 0.01
    assert new["mean_average_precision"] >= old["mean_average_precision"] - 0.01
    assert new["flops"] <= 0.5 * old["flops"]
    test = open_data(str(tmp_path / "labels.npz"), GREY, None, lambda: len(LABELS)).evaluation.load()
    assert test.labels is not None
    with torch.no_grad():
        answers = load_model(str(tmp_path / "half" / "pruned.pt")).module(test.pixels)
    assert new["mean_average_precision"] == pytest.approx(mean_average_precision(answers, test.labels), abs=1e-3)


def retrieved(module: nn.Module, pixels: Tensor, labels: Tensor) -> float:
    """The share of images whose nearest neighbour is of their class."""
    with torch.no_grad():
        unit = F.normalize(module(pixels), dim=-1)
    nearest = (unit @ unit.T).fill_diagonal_(-2).argmax(dim=1)
    return float((labels[nearest] == labels).float().mean())


def test_embedding() -> None:
    splits = open_data("digits", GREY)
    images, test = splits.calibration.load(), splits.evaluation.load()
    assert images.labels is not None and test.labels is not None
    classes = images.labels
    proxies = F.normalize(torch.randn(10, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    model = learnt(
        Behind(ViT(**SIZES, classes=16, drop_path=0.3), Unit()), images.pixels,
        lambda answers, places: F.cross_entropy(answers @ proxies.T / 0.1, classes[places]),
    )  # fmt: skip
    pruned = vitfx.prune(model, images.pixels[:1024], target_flops=0.5)
    before, after = (retrieved(module, test.pixels, test.labels) for module in (model, pruned.module))
    assert before > 0.95 and after >= before - 0.01
    assert pruned.circuit.settings["task"] == "embedding"
    assert pruned.verification.measured.flops <= 0.5 * pruned.verification.before.flops

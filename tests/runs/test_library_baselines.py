"""The baseline's accuracy is what torchvision, timm and transformers themselves reach on the same files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
import timm
import torch
import torchvision
import transformers
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn
from torchvision.transforms._presets import ImageClassification
from transformers.image_utils import load_image

from tests.support.image_kinds import KINDS, save_kind
from tests.support.prune_runs import report, run
from vitfx.images.preprocess import Preprocess
from vitfx.images.splits import open_data
from vitfx.models.checkpoint import load_model

CLASSES = ("ant", "bee", "cat", "dog")
Own = Callable[[Path], Tensor]


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photographs")
    for part, every in (("train", 2), ("val", 1)):
        for place, kind in enumerate(list(KINDS)[::every]):
            (folder / part / CLASSES[place % 4]).mkdir(parents=True, exist_ok=True)
            save_kind(folder / part / CLASSES[place % 4], kind)
    return folder


@torch.no_grad()
def told_apart(model: nn.Module) -> nn.Module:
    """Random weights whose answers differ from image to image."""
    generator = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.copy_(torch.randn(weight.shape, generator=generator) * weight[0].numel() ** -0.5)
    return model.eval()


def of_torchvision(folder: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], nn.Module, Own]:
    sizes = {"num_layers": 1, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 32}
    made: Callable[..., nn.Module] = lambda weights=None, **more: torchvision.models.VisionTransformer(  # noqa: E731
        **{"image_size": 32, "patch_size": 8, **sizes, **more}
    )
    preset = ImageClassification(crop_size=32, resize_size=37)
    choice = type("Choice", (), {"name": "SMALL", "transforms": staticmethod(lambda: preset)})
    monkeypatch.setattr(torchvision.models, "get_model", lambda name, weights=None, **more: made(**more))
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda name: [choice])
    model = told_apart(made(num_classes=4))
    torch.save(model.state_dict(), folder / "small.pth")

    def own(path: Path) -> Tensor:
        with Image.open(path) as image:
            return model(preset(image.convert("RGB"))[None])[0]

    return [str(folder / "small.pth"), "--arch", "torchvision:vit_b_16"], model, own


def of_timm(folder: Path, _: pytest.MonkeyPatch) -> tuple[list[str], nn.Module, Own]:
    model = told_apart(timm.create_model("test_vit", img_size=32, num_classes=4, depth=1))
    config = {"crop_pct": 0.8, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.25] * 3, "num_classes": 4}
    config |= {"input_size": [3, 32, 32], "label_names": list(CLASSES)}
    record = {
        "architecture": "test_vit",
        "num_classes": 4,
        "model_args": {"img_size": 32, "depth": 1},
        "pretrained_cfg": config,
    }
    (folder / "hub").mkdir()
    (folder / "hub" / "config.json").write_text(json.dumps(record))
    save_file(model.state_dict(), folder / "hub" / "model.safetensors")
    transform = create_transform(**resolve_data_config(config), is_training=False)

    def own(path: Path) -> Tensor:
        with Image.open(path) as image:
            return model(transform(image.convert("RGB"))[None])[0]

    return [str(folder / "hub")], model, own


def of_transformers(folder: Path, _: pytest.MonkeyPatch) -> tuple[list[str], nn.Module, Own]:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = transformers.Dinov2Config(**sizes, image_size=32, patch_size=8, num_labels=4)
    config.id2label = dict(enumerate(CLASSES))
    model = told_apart(transformers.Dinov2ForImageClassification(config))
    processor = transformers.BitImageProcessor(
        size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32}, image_mean=[0.4] * 3, image_std=[0.3] * 3
    )
    for part in (model, processor):
        part.save_pretrained(folder / "hf")
    pipeline = transformers.AutoImageProcessor.from_pretrained(folder / "hf")

    def own(path: Path) -> Tensor:
        return model(**pipeline(load_image(str(path)), return_tensors="pt")).logits[0]

    return [str(folder / "hf")], model, own


@pytest.mark.parametrize("library", [of_torchvision, of_timm, of_transformers])
@torch.no_grad()
def test_baseline_top_1_is_the_librarys_own(
    library: Callable[[Path, pytest.MonkeyPatch], tuple[list[str], nn.Module, Own]],
    photographs: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    spec, _, own = library(tmp_path, monkeypatch)
    loaded = load_model(spec[0], arch=spec[2] if len(spec) > 1 else None)
    images = open_data(str(photographs), loaded.preprocess, CLASSES).evaluation.load()
    expected = torch.stack([own(photographs / name) for name in images.names])
    torch.testing.assert_close(loaded.module(images.pixels), expected, atol=1e-4, rtol=1e-4)
    right = (expected.argmax(1) == images.labels).float().mean()
    assert 0 < right < 1
    options = ["--data", str(photographs), "--tau", "0", "--samples", "8", "--rewrites", "none"]
    assert run(spec[0], tmp_path / "out", *spec[1:], *options) == 0
    written = report(tmp_path / "out")
    assert written["baseline"]["accuracy"] == pytest.approx(float(right))
    assert loaded.preprocess.first_line in " ".join(capsys.readouterr().out.split())
    assert Preprocess.from_json(written["settings"]["preprocess"]) == loaded.preprocess
    assert "cropped to the central 32×32" in (tmp_path / "out" / "report.md").read_text()
    assert load_model(str(tmp_path / "out" / "pruned.pt")).preprocess == loaded.preprocess
    for name in ("baseline.onnx", "pruned.onnx"):
        session = onnxruntime.InferenceSession(tmp_path / "out" / name, providers=["CPUExecutionProvider"])
        recorded = session.get_modelmeta().custom_metadata_map["preprocess"]
        assert Preprocess.from_json(json.loads(recorded)) == loaded.preprocess

"""Recipes give the pixels of torchvision's and timm's own evaluation pipelines, on images of every shape and mode."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
import torchvision
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torchvision.transforms import InterpolationMode
from torchvision.transforms._presets import ImageClassification

from tests.support.image_kinds import KINDS, save_kind
from vitfx.images.preprocess import Preprocess
from vitfx.images.sources import StoredImage
from vitfx.models.recipes import timm_recipe, torchvision_recipe
from vitfx.support.errors import UserError


def seen(recipe: Preprocess, path: Path) -> torch.Tensor:
    return recipe(StoredImage(path).decode(recipe.channels, recipe.reader))


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("kinds")
    return {kind: save_kind(folder, kind) for kind in KINDS}


def assert_all_equal(recipe: Preprocess, own, kinds: dict[str, Path], mode: str = "RGB") -> None:
    for kind, path in kinds.items():
        with Image.open(path) as image:
            expected = own(image.convert(mode))
        torch.testing.assert_close(
            seen(recipe, path), expected, atol=1e-6, rtol=0, msg=lambda text, k=kind: f"{k}: {text}"
        )


PRESETS = {
    "vit_b_16": {"crop_size": 32, "resize_size": 37, "interpolation": InterpolationMode.BILINEAR},
    "swag": {"crop_size": 48, "resize_size": 48, "interpolation": InterpolationMode.BICUBIC},
    "crop larger than the image": {"crop_size": 64, "resize_size": 20, "mean": (0.5,) * 3, "std": (0.25,) * 3},
    "without antialias": {"crop_size": 31, "resize_size": 40, "antialias": False},
}


@pytest.mark.parametrize("name", PRESETS)
def test_torchvision(monkeypatch: pytest.MonkeyPatch, kinds: dict[str, Path], name: str) -> None:
    preset = ImageClassification(**PRESETS[name])
    choice = type("Choice", (), {"name": "MADE_UP", "transforms": staticmethod(lambda: preset)})
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda _: [choice])
    recipe = torchvision_recipe("vit_b_16", None)
    assert_all_equal(recipe, preset, kinds)
    assert Preprocess.from_json(recipe.to_json()) == recipe


@pytest.mark.parametrize(
    ("name", "side", "crop", "resized"),
    [
        ("vit_b_16", None, 224, 256),
        ("vit_b_16", 384, 384, 384),
        ("vit_b_16", 112, 112, 128),
        ("vit_l_16", 512, 512, 512),
    ],
)
def test_torchvisions_published_presets(name: str, side: int | None, crop: int, resized: int) -> None:
    recipe = torchvision_recipe(name, side and (side, side))
    assert recipe.size == (crop, crop) and recipe.resize is not None and recipe.resize.to == (resized, resized)


CONFIGS = {
    "centre": {"crop_pct": 0.9, "interpolation": "bicubic"},
    "defaults": {},
    "squash": {"crop_mode": "squash", "crop_pct": 1.0, "interpolation": "bicubic"},
    "squash and crop": {"crop_mode": "squash", "crop_pct": 0.8, "interpolation": "lanczos"},
    "border": {"crop_mode": "border", "crop_pct": 1.0, "interpolation": "bicubic"},
    "border and crop": {"crop_mode": "border", "crop_pct": 0.7, "mean": (0.1, 0.5, 0.9), "std": (0.3,) * 3},
    "not square": {"input_size": (3, 24, 48), "crop_pct": 0.95, "interpolation": "bilinear"},
    "not square, squash": {"input_size": (3, 48, 24), "crop_mode": "squash", "crop_pct": 0.95},
    "nearest": {"interpolation": "nearest", "crop_pct": 1.0},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_timm(kinds: dict[str, Path], name: str) -> None:
    given = {"input_size": (3, 32, 32), "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)} | CONFIGS[name]
    own = create_transform(**resolve_data_config({}, pretrained_cfg=given), is_training=False)
    recipe = timm_recipe(given, name, None)
    assert_all_equal(recipe, own, kinds)
    assert Preprocess.from_json(recipe.to_json()) == recipe


def test_timm_for_grey_images(kinds: dict[str, Path]) -> None:
    given = {"input_size": (1, 32, 32), "mean": (0.5,), "std": (0.5,), "crop_pct": 0.9}
    own = create_transform(**resolve_data_config({}, pretrained_cfg=given), is_training=False)
    assert_all_equal(timm_recipe(given, "grey", None, 1), own, kinds, "L")
    assert timm_recipe(given | {"mean": (0.5,) * 3, "std": (0.5,) * 3}, "grey", None, 1).channels == 1


@pytest.mark.parametrize("size", [(24, 24), (40, 56), (64, 64)])
@pytest.mark.parametrize("crop_mode", ["center", "squash", "border"])
def test_another_size_keeps_timms_share(size: tuple[int, int], crop_mode: str, kinds: dict[str, Path]) -> None:
    given = {"input_size": (3, 32, 32), "crop_pct": 0.9, "crop_mode": crop_mode, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    own = create_transform(**resolve_data_config({"input_size": (3, *size)}, pretrained_cfg=given), is_training=False)
    some = {kind: kinds[kind] for kind in ("wide", "tall", "tiny")}
    assert_all_equal(timm_recipe(given, "vit", None).at(size), own, some)
    assert_all_equal(timm_recipe(given, "vit", size), own, some)


def test_what_a_model_was_built_for_counts() -> None:
    from vitfx.models.architectures import timm_preprocess

    recipe = timm_preprocess(timm.create_model("test_vit", img_size=(32, 48)))
    assert recipe.size == (32, 48) and recipe.resize is not None
    assert recipe.resize.to == (33, 50) and recipe.resize.crop_pct == 0.95
    assert recipe.origin == "timm's, of test_vit"
    assert timm_preprocess(timm.create_model("test_vit", in_chans=1)).mean == (0.5,)


@pytest.mark.parametrize(
    "wrong",
    [
        {"input_size": 5},
        {"interpolation": "random"},
        {"crop_pct": -1},
        {"mean": "grey"},
        {"crop_pct": "all"},
        {"std": 0.5},
    ],
)
def test_what_timm_does_not_take_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(UserError):
        timm_recipe({"input_size": (3, 32, 32)} | wrong, "vit", None)

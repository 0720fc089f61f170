"""Recipes give the pixels of transformers' own image processors, on images of every shape and mode."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers.image_utils import load_image

from tests.support.image_kinds import KINDS, save_kind
from vitfx.images.preprocess import Preprocess
from vitfx.images.sources import StoredImage
from vitfx.models.processors import processor_recipe
from vitfx.support.errors import UserError


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("kinds")
    return {kind: save_kind(folder, kind) for kind in KINDS}


def read(record: dict[str, Any] | None, model: str = "vit", **config: Any) -> Preprocess | None:
    made = transformers.CONFIG_MAPPING[model](**{"image_size": 32} | config)
    return processor_recipe(record, "preprocessor_config.json", made, transformers)


def size(height: int, width: int) -> dict[str, int]:
    return {"height": height, "width": width}


EDGE = {"size": {"shortest_edge": 36}, "crop_size": size(32, 32)}
VIT = {"size": size(32, 32)}
PROCESSORS = {
    "ViT": transformers.ViTImageProcessor(**VIT),
    "ViT, not square": transformers.ViTImageProcessor(size=size(48, 24), resample=3),
    "DeiT": transformers.DeiTImageProcessor(size=size(40, 40), crop_size=size(32, 32)),
    "BEiT": transformers.BeitImageProcessor(size=size(36, 36), crop_size=size(32, 32), do_center_crop=True),
    "CLIP": transformers.CLIPImageProcessor(**EDGE),
    "SigLIP": transformers.SiglipImageProcessor(**VIT),
    "DINOv2": transformers.BitImageProcessor(**EDGE, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225]),
    "DINOv3": transformers.DINOv3ViTImageProcessor(**VIT),
    "DINOv3 with a crop": transformers.DINOv3ViTImageProcessor(**EDGE, do_center_crop=True, resample=3),
    "odd crop": transformers.BitImageProcessor(size={"shortest_edge": 41}, crop_size=size(31, 28)),
    "crop larger than the image": transformers.BitImageProcessor(size={"shortest_edge": 20}, crop_size=size(33, 48)),
    "crop alone": transformers.BitImageProcessor(do_resize=False, crop_size=size(40, 40)),
    "-1 to 1": transformers.ViTImageProcessor(
        **VIT, rescale_factor=1 / 127.5, image_mean=[1.0] * 3, image_std=[1.0] * 3
    ),
    "without mean": transformers.ViTImageProcessor(**VIT, do_normalize=False),
    "without mean, of 0 to 2": transformers.ViTImageProcessor(**VIT, do_normalize=False, rescale_factor=2 / 255),
    "bytes": transformers.ViTImageProcessor(**VIT, do_normalize=False, do_rescale=False),
    "bytes with a mean": transformers.ViTImageProcessor(**VIT, do_rescale=False, image_mean=[127.0] * 3),
    "lanczos": transformers.ViTImageProcessor(**VIT, resample=1),
    "nearest": transformers.ViTImageProcessor(**VIT, resample=0),
    "one number": transformers.ViTImageProcessor(**VIT, image_mean=0.4, image_std=0.25),
}


@pytest.mark.parametrize("name", PROCESSORS)
def test_pixels_are_the_processors_own(kinds: dict[str, Path], name: str) -> None:
    processor = PROCESSORS[name]
    recipe = read(processor.to_dict())
    assert recipe is not None and Preprocess.from_json(recipe.to_json()) == recipe
    assert recipe.origin == f"{type(processor).__name__}'s, from preprocessor_config.json"
    for kind, path in kinds.items():
        own = processor(load_image(str(path)), return_tensors="pt")["pixel_values"][0].float()
        got = recipe(StoredImage(path).decode(3, recipe.reader))
        torch.testing.assert_close(got, own, atol=1e-6, rtol=3e-7, msg=lambda text, k=kind: f"{k}: {text}")


def test_old_forms() -> None:
    new = read({"size": size(32, 32), "image_mean": [0.5] * 3, "image_std": [0.5] * 3})
    for old in (
        {"size": 32, "feature_extractor_type": "ViTFeatureExtractor"},
        {"size": [32, 32], "image_processor_type": "ViTImageProcessorFast"},
        {"size": 32, "image_mean": None, "image_std": None},
        {"size": 32, "image_mean": 0.5, "image_std": 0.5},
        {"size": 32, "auto_map": {"AutoImageProcessor": "evil.EvilProcessor"}},
        {"rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": 1.0, "size": 32},
    ):
        assert read(old) == new, old
    clip = read({"size": 36, "crop_size": 32, "image_processor_type": "CLIPImageProcessor"}, "clip")
    assert clip is not None and str(clip).startswith(
        "resized to 36 on the shortest edge (bicubic), cropped to the central 32×32"
    )
    null = read({"size": 32, "image_mean": None})
    assert null is not None and null.origin.endswith("from preprocessor_config.json, whose image_mean is null")


DEFAULTS = [("vit", 32, "bilinear", 0.5), ("deit", 48, "bicubic", 0.5), ("beit", 224, "bicubic", 0.5)]


@pytest.mark.parametrize(("model", "side", "interpolation", "mean"), DEFAULTS)
def test_the_defaults_of_the_model_type(model: str, side: int, interpolation: str, mean: float) -> None:
    recipe = read(None, model, image_size=side)
    assert recipe is not None and (recipe.size, recipe.interpolation) == ((side, side), interpolation)
    assert recipe.mean == (mean,) * 3
    assert recipe.origin.endswith("ImageProcessor's defaults, as there is no preprocessor_config.json")


@pytest.mark.parametrize("model", ["dinov2", "dinov2_with_registers"])
def test_dinov2_has_the_published_ones(model: str) -> None:
    """transformers would give it BiT's, whose mean is CLIP's."""
    recipe = read(None, model)
    assert recipe is not None and (recipe.size, recipe.mean[0], recipe.std[0]) == ((32, 32), 0.485, 0.229)
    assert recipe.interpolation == "bicubic" and recipe.resize is not None and recipe.resize.edge == "shortest"
    assert recipe.origin == "published DINOv2 models', as there is no preprocessor_config.json"


@pytest.mark.parametrize("model", ["clip", "siglip", "metaclip_2"])
def test_the_size_of_a_tower_inside(model: str) -> None:
    recipe = read(None, model, vision_config={"image_size": 48})
    assert recipe is not None and recipe.size == (48, 48)


@pytest.mark.parametrize(
    ("model", "sentence"), [("levit", "LevitImageProcessor does more"), ("pixtral", "longest_edge")]
)
def test_a_missing_file_is_not_blamed(model: str, sentence: str) -> None:
    with pytest.raises(
        UserError, match=rf"the defaults of {model} \(there is no preprocessor_config.json\).*{sentence}"
    ):
        read(None, model)


def test_model_types_without_a_processor_of_their_own() -> None:
    assert read(None, "vitdet") is None


def test_grey_images() -> None:
    recipe = read({"size": size(32, 32), "image_mean": [0.5], "image_std": 0.25}, num_channels=1)
    assert recipe is not None and (recipe.mean, recipe.std) == ((0.5,), (0.25,))


@pytest.mark.parametrize(
    ("record", "sentence"),
    [
        ({"size": {"longest_edge": 9}}, r"gives the image size as \{'longest_edge': 9\}"),
        ({"size": {"shortest_edge": 9, "longest_edge": 12}}, "gives the image size as"),
        ({"size": {"shortest_edge": 9}}, "the shortest edge becomes 9 without a crop"),
        ({"do_resize": False}, "neither resizes nor crops"),
        ({"size": size(5000, 5000)}, "images of 5000 pixels are too large"),
        ({"size": "large"}, "preprocessor_config.json can't be followed"),
        ({"resample": 4}, "torch does not resize by box"),
        ({"rescale_factor": 0}, "can't be followed"),
        ({"image_std": [0.5, 0.5, -0.5]}, "std above 0"),
        ({"image_processor_type": "SamImageProcessor"}, "gives the image size as {'longest_edge': 1024}"),
        ({"image_processor_type": "PerceiverImageProcessor"}, "PerceiverImageProcessor does more than resize, crop"),
    ],
)
def test_what_can_t_be_followed_is_refused(record: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence) as refused:
        read(record)
    assert "\n" not in str(refused.value)

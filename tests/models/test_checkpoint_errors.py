"""What cannot be loaded is refused in one sentence that names the fault, and no code in it runs."""

from __future__ import annotations

import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import nn

from vitfx.models.checkpoint import CHECKPOINT_FORMAT, load_model
from vitfx.models.vit import ViT
from vitfx.support.errors import UserError

SIZES = {"image_size": 8, "patch_size": 4, "channels": 3, "classes": 3, "width": 8, "depth": 1, "heads": 2, "mlp": 8}


class Code:
    """Makes a marker file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


class Pooled(nn.Module):
    """Answers all images at once, which nobody can compare image by image."""

    image_size = 8

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(0)


def record(**changes: Any) -> dict[str, Any]:
    """A whole checkpoint of a small ViT, with `changes`."""
    return {
        "format": CHECKPOINT_FORMAT,
        "factory": "vitfx.models:ViT",
        "kwargs": SIZES,
        "state_dict": ViT(**SIZES).state_dict(),
        "preprocess": {"size": [8, 8]},
    } | changes


def weights(**changes: Any) -> dict[str, Any]:
    return ViT(**SIZES).state_dict() | changes


def refused(path: Path, contents: Any = None, **options: Any) -> str:
    """The sentence with which loading `contents` is refused."""
    if contents is not None:
        torch.save(contents, path)
    with pytest.raises(UserError) as caught:
        load_model(str(path), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_the_record_that_the_others_break_is_whole(tmp_path: Path) -> None:
    torch.save(record(), tmp_path / "model.pt")
    assert load_model(str(tmp_path / "model.pt")).preprocess.size == (8, 8)


def test_a_missing_file(tmp_path: Path) -> None:
    path = tmp_path / "none.pt"
    assert refused(path) == f"{path} does not exist: give the path of a model file, or demo for the built-in model"


@pytest.mark.parametrize("length", [0, 10, 200, -1, -300])
def test_a_truncated_file(tmp_path: Path, length: int) -> None:
    torch.save(record(), tmp_path / "model.pt")
    whole = (tmp_path / "model.pt").read_bytes()
    (tmp_path / "model.pt").write_bytes(whole[:length])
    assert "is cut short or no model file" in refused(tmp_path / "model.pt")


@pytest.mark.parametrize("name", ["notes.pt", "notes.pth", "notes.safetensors", "notes.pt2"])
def test_a_text_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("Weights are on the other disk.")
    assert "is not a whole safetensors" in (said := refused(tmp_path / name)) or "cut short or no model file" in said


def test_a_truncated_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file(weights(), path)
    path.write_bytes(path.read_bytes()[:-8])
    assert "is not a whole safetensors file" in refused(path, arch="timm:vit_tiny_patch16_224")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["whole", "state_dict", "kwargs", "classes"])
def test_code_in_a_pickle_does_not_run(tmp_path: Path, place: str, zipped: bool) -> None:
    code = Code(tmp_path / "marker")
    contents = code if place == "whole" else record(**{place: {"size": code}})
    torch.save(contents, tmp_path / "model.pt", _use_new_zipfile_serialization=zipped)
    assert "mkdir" in (said := refused(tmp_path / "model.pt"))
    assert "which would run when it is unpickled" in said
    assert not (tmp_path / "marker").exists()


def test_code_in_a_plain_pickle_does_not_run(tmp_path: Path) -> None:
    for protocol in (2, 4):
        (tmp_path / "model.pt").write_bytes(pickle.dumps(Code(tmp_path / "marker"), protocol=protocol))
        refused(tmp_path / "model.pt")
        assert not (tmp_path / "marker").exists()


def test_a_trusted_pickle_does_run(tmp_path: Path) -> None:
    """So that the tests above would see it."""
    refused(tmp_path / "model.pt", Code(tmp_path / "marker"), trust_pickle=True)
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"format": "vitfx-checkpoint/9"}, "has the format 'vitfx-checkpoint/9', this vitfx reads"),
        ({"format": None}, "has the format 'None'"),
        (
            {"factory": "os:system", "kwargs": {"command": "true"}},
            "factory 'os:system' is not one that a checkpoint may name",
        ),
        ({"factory": "torchvision.models:get_modle"}, "'torchvision.models:get_modle' is not one that"),
        ({"factory": "vitfx.nothing:ViT"}, "'vitfx.nothing:ViT' is not one that"),
        ({"factory": "torchvision"}, "'torchvision' is not one that"),
        ({"factory": 3}, "has a value of type int as its factory"),
        ({"factory": "timm.models:NoSuchModel", "kwargs": {}}, "'timm.models:NoSuchModel' does not exist"),
        ({"factory": "timm.models.nothing:ViT", "kwargs": {}}, "'timm.models.nothing:ViT' does not exist"),
        ({"factory": "timm.models.vision_transformer:Callable", "kwargs": {}}, "is no model class"),
        ({"factory": "torchvision.datasets.utils:download_url"}, "is not one that a checkpoint may name"),
        ({"factory": "torchvision.models:vit_b_16"}, "is not one that a checkpoint may name"),
        ({"factory": "torchvision.ops:MLP"}, "is not one that a checkpoint may name"),
        ({"factory": "transformers.dynamic_module_utils:get_class_from_dynamic_module"}, "is not one that"),
        (
            {"factory": "timm:create_model", "kwargs": {"model_name": "resnet18", "checkpoint_path": "x.pth"}},
            "'checkpoint_path', is 'x.pth': leave it out",
        ),
        (
            {"factory": "timm:create_model", "kwargs": {"model_name": "hf-hub:someone/model"}},
            "'hf-hub:someone/model' is no image classifier of timm",
        ),
        (
            {"factory": "torchvision.models:get_model", "kwargs": {"name": "vit_b_16", "weights": "DEFAULT"}},
            "'weights', is 'DEFAULT': leave it out",
        ),
        ({"kwargs": SIZES | {"heads": 3}}, "ViT's width 8 is not a multiple of its heads 3"),
        ({"kwargs": SIZES | {"hats": 3}}, "vitfx.models:ViT, 'hats', is none that a file may give"),
        ({"kwargs": SIZES | {"depth": 2}}, r"with 12 missing \(first: blocks.1.attention_norm.weight\)"),
        (
            {"kwargs": SIZES | {"mlp": 9}},
            r"with 3 of another shape \(first: blocks.0.mlp.0.weight is \(8, 8\), not \(9, 8\)\)",
        ),
        (
            {"state_dict": weights(extra=torch.zeros(1))},
            r"does not fit vitfx.models:ViT, with 1 unexpected \(first: extra\)",
        ),
        ({"state_dict": {}}, "holds no weights"),
        ({"state_dict": weights(step=3)}, "'step' in .* is of type int, not a plain tensor"),
        ({"state_dict": torch.zeros(3)}, "holds a Tensor, not weights by name"),
        ({"preprocess": {"size": [8, 8], "crop": 1}}, "unknown keys crop"),
        ({"preprocess": {"size": [16, 16]}}, r"does not take images of 3×16×16"),
        ({"preprocess": {"size": [8, 8], "mean": [0.5], "std": [0.5]}}, r"does not take images of 1×8×8"),
        ({"classes": ["a", "b"]}, "names 2 classes but has 3 logits"),
    ],
)
def test_a_checkpoint_that_is_not_right(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    said = refused(tmp_path / "model.pt", record(**changes))
    assert re.search(sentence, said), said


@pytest.mark.parametrize("key", ["factory", "kwargs", "state_dict"])
def test_a_checkpoint_without_a_part(tmp_path: Path, key: str) -> None:
    contents = record()
    del contents[key]
    assert f"calls itself vitfx-checkpoint/1 but has no {key}" in refused(tmp_path / "model.pt", contents)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_numbers(tmp_path: Path, value: float) -> None:
    head = torch.ones(3, 8)
    head[1, 2] = head[2, 2] = value
    said = refused(tmp_path / "model.pt", record(state_dict=weights(**{"head.weight": head})))
    assert "2 of the 24 weights in head.weight of" in said
    assert "are NaN or infinite" in said


def test_a_checkpoint_takes_no_arch(tmp_path: Path) -> None:
    assert "leave it out" in refused(tmp_path / "model.pt", {"format": CHECKPOINT_FORMAT}, arch="timm:vit_tiny")


def test_a_state_dict_needs_arch(tmp_path: Path) -> None:
    assert "holds only weights: name their model with `arch`" in refused(tmp_path / "model.pt", weights())


@pytest.mark.parametrize(
    ("arch", "sentence"),
    [
        ("vit_b_16", "`arch` vit_b_16 is not one of torchvision:NAME, timm:NAME or hf:DIR"),
        ("keras:vit", "`arch` keras:vit is not one of"),
        ("timm:hf-hub:someone/model", "is not one of"),
        ("timm:vit_huge_typo", "`arch` timm:vit_huge_typo cannot be made: timm has no image classifier of this name"),
        (
            "torchvision:vit_b_17",
            "`arch` torchvision:vit_b_17 cannot be made: torchvision has no image classifier of this name",
        ),
        ("timm:vit_tiny_patch16_224", "does not fit timm:vit_tiny_patch16_224, with"),
        ("timm:vit_tiny_patch16_224", "with the arguments that it was made with, as in timm:NAME,depth=4,embed_dim=96"),
        ("hf:nowhere", "nowhere has no config.json"),
    ],
)
def test_an_arch_that_does_not_fit(tmp_path: Path, arch: str, sentence: str) -> None:
    assert sentence in refused(tmp_path / "model.pt", weights(), arch=arch)


def test_position_embeddings_that_make_no_square(tmp_path: Path) -> None:
    state = timm.create_model("vit_tiny_patch16_224", img_size=32).state_dict()
    state["pos_embed"] = torch.zeros(1, 8, 192)
    said = refused(tmp_path / "model.pt", state, arch="timm:vit_tiny_patch16_224")
    assert "has positions for 7 patches of 16×16 pixels, which can be several heights and widths" in said


def test_a_module_that_does_not_answer_each_image(tmp_path: Path) -> None:
    said = refused(tmp_path / "model.pt", Pooled(), trust_pickle=True)
    assert "returns (3, 8, 8) for two images, not a tensor with an answer for each: give another" in said


def test_a_module_that_does_not_say_its_image_size(tmp_path: Path) -> None:
    assert "does not say what images it takes" in refused(tmp_path / "model.pt", nn.Flatten(), trust_pickle=True)


def test_an_artifact_with_a_damaged_graph(tmp_path: Path) -> None:
    contents = {"format": "vitfx-artifact/1", "graph": "{}", "state_dict": weights()}
    assert "graph" in refused(tmp_path / "model.pt", contents)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    sizes = {"image_size": 8, "patch_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8}
    config = transformers.ViTConfig(**sizes, intermediate_size=8, num_labels=3)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path)
    return tmp_path


def test_a_folder_without_config(tmp_path: Path) -> None:
    assert "has no config.json" in refused(tmp_path)


def test_a_folder_with_a_broken_config(folder: Path) -> None:
    (folder / "config.json").write_text("{")
    assert "config.json is not JSON" in refused(folder)


def test_a_folder_with_truncated_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    assert "cannot be loaded as an image classifier" in refused(folder)


def test_a_folder_of_a_classifier_without_its_weights(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = {name: value for name, value in load_file(path).items() if not name.startswith("classifier.")}
    save_file(weights, path, {"format": "pt"})
    assert "has no weights for 2 tensors (first: classifier.bias)" in refused(folder)


@pytest.mark.parametrize("name", ["CLIPModel", "ViTForMaskedImageModeling"])
def test_a_folder_of_another_model_says_what_it_was_saved_from(tmp_path: Path, name: str) -> None:
    tower = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    sizes: dict[str, Any] = {**tower, "image_size": 8, "patch_size": 4}
    config = transformers.CLIPConfig(vision_config=sizes, text_config=tower | {"vocab_size": 9}, projection_dim=4)
    made = transformers.ViTConfig(**sizes, encoder_stride=4) if name.startswith("ViT") else config
    getattr(transformers, name)(made).save_pretrained(tmp_path)
    assert f"fine-tuned for image classification, as this one was saved from a {name}, save its part" in refused(
        tmp_path
    )


def test_a_folder_with_odd_preprocessing(folder: Path) -> None:
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"longest_edge": 9}}))
    assert "gives the image size as {'longest_edge': 9}" in refused(folder)


def test_a_folder_with_nan_weights(folder: Path) -> None:
    model = transformers.ViTForImageClassification.from_pretrained(folder)
    nn.init.constant_(model.classifier.bias, float("nan"))
    model.save_pretrained(folder)
    assert "3 of the 3 weights in classifier.bias" in refused(folder)

"""Folders of weights: in parts, from timm's Hub pages, from transformers' Trainer; and sizes given with --arch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import transformers
from safetensors.torch import save_file
from timm.models import save_for_hf
from torch import nn

from tests.models.test_checkpoint_errors import Code, refused
from tests.models.test_state_dicts import ARCH, put, vit
from vitfx.images.preprocess import Preprocess
from vitfx.models.architectures import arch_factory, arch_sizes
from vitfx.models.checkpoint import load_model
from vitfx.models.weights import fingerprint

HF = {"image_size": 16, "patch_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 8}
HF |= {"intermediate_size": 16, "num_labels": 3}
CONFIG = {"input_size": [3, 32, 32], "interpolation": "bilinear", "mean": [0.1, 0.2, 0.3], "std": [0.5] * 3}


def hf(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    made: nn.Module = transformers.ViTForImageClassification(transformers.ViTConfig(**HF)).eval()
    return made


def inner(path: Path, **options: Any) -> str:
    """The fingerprint of the model that `path` gives, without the wrapper that takes its logits."""
    module = load_model(str(path), **options).module
    return fingerprint(getattr(module, "model", module).state_dict())


def in_parts(folder: Path, weights: dict[str, torch.Tensor], ending: str) -> Path:
    folder.mkdir(exist_ok=True)
    names, stem = sorted(weights), "model" if ending == "safetensors" else "pytorch_model"
    places = {}
    for part in (1, 2, 3):
        file = f"{stem}-0000{part}-of-00003.{ending}"
        tensors = {name: weights[name] for name in names[part - 1 :: 3]}
        save_file(tensors, folder / file) if ending == "safetensors" else torch.save(tensors, folder / file)
        places |= dict.fromkeys(tensors, file)
    index = folder / f"{stem}.{ending}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return index


@pytest.mark.parametrize("prefix", ["", "module._orig_mod."])
@pytest.mark.parametrize("ending", ["safetensors", "bin"])
def test_weights_in_parts(tmp_path: Path, ending: str, prefix: str) -> None:
    weights = vit().state_dict()
    index = in_parts(tmp_path / "parts", put(prefix, weights), ending)
    for spec in (index, index.parent):
        assert load_model(str(spec), arch=ARCH).fingerprint == fingerprint(weights)
    part = next(index.parent.glob("*-00002-of-*"))
    assert "is one of 3 parts of a model: give its folder or its .index.json file" in refused(part, arch=ARCH)
    part.unlink()
    assert f"names the file '{part.name}', which is not beside it" in refused(index, arch=ARCH)


def test_a_hugging_face_folder_in_parts(tmp_path: Path) -> None:
    model = hf()
    model.save_pretrained(tmp_path, max_shard_size="1KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    for spec in (tmp_path, tmp_path / "model.safetensors.index.json"):
        assert inner(spec, arch=f"hf:{tmp_path}") == inner(tmp_path) == fingerprint(model.state_dict())


@pytest.mark.parametrize(
    ("index", "sentence"),
    [
        ("{", "is not JSON"),
        ('{"weight_map": {"a": 3}}', "is no index of weights (the index.weight_map.a is 3, not text)"),
        ("[1]", "is no index of weights (the index is [1], not an object)"),
        ('{"weight_map": {"a": "../up.safetensors"}}', "names the file '../up.safetensors', which is not beside it"),
        ('{"weight_map": {"a": "/etc/passwd"}}', "names the file '/etc/passwd', which is not beside it"),
        ('{"weight_map": {"a": ".."}}', "names the file '..', which is not beside it"),
        ('{"weight_map": {"a": "only.safetensors", "b": "only.safetensors"}}', "1 tensors that"),
    ],
)
def test_an_index_that_is_not_right(tmp_path: Path, index: str, sentence: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    for path in (folder / "only.safetensors", tmp_path / "up.safetensors"):
        save_file({"a": torch.ones(2)}, path)
    (folder / "model.safetensors.index.json").write_text(index)
    assert sentence in refused(folder / "model.safetensors.index.json", arch=ARCH)


def test_code_in_a_part_does_not_run(tmp_path: Path) -> None:
    index = in_parts(tmp_path / "parts", vit().state_dict(), "bin")
    torch.save({"a": Code(tmp_path / "marker")}, index.parent / "pytorch_model-00002-of-00003.bin")
    assert "holds pickled code" in refused(index, arch=ARCH)
    assert not (tmp_path / "marker").exists()


def test_a_file_beside_the_folders_own_weights_is_taken(tmp_path: Path) -> None:
    hf(0).save_pretrained(tmp_path)
    other = hf(1)
    torch.save({"state_dict": put("model.", other.state_dict())}, tmp_path / "other.pt")
    assert inner(tmp_path / "other.pt", arch=f"hf:{tmp_path}") == fingerprint(other.state_dict())
    both = {"model": hf(0).state_dict(), "ema": other.state_dict()}
    torch.save(both, tmp_path / "both.pt")
    assert "choose those that were evaluated" in refused(tmp_path / "both.pt", arch=f"hf:{tmp_path}")
    assert inner(tmp_path / "both.pt", arch=f"hf:{tmp_path}", weights="ema") == fingerprint(other.state_dict())


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "module._orig_mod.", "model."])
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_a_hugging_face_folder_saved_from_within_a_wrapper(tmp_path: Path, prefix: str, name: str) -> None:
    model = hf(0)
    model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    weights = put(prefix, model.state_dict())
    save_file(weights, tmp_path / name) if name.endswith("safetensors") else torch.save(weights, tmp_path / name)
    assert inner(tmp_path) == fingerprint(model.state_dict())


def test_a_trainers_folder(tmp_path: Path) -> None:
    hf(0).save_pretrained(tmp_path / "checkpoint-9")
    loaded = load_model(str(tmp_path))
    assert loaded.weights_note == f"weights: checkpoint-9, the only checkpoint in {tmp_path}"
    assert inner(tmp_path) == fingerprint(hf(0).state_dict())
    hf(1).save_pretrained(tmp_path / "checkpoint-10")
    assert "has no model of its own but checkpoint-9, checkpoint-10: give one" in refused(tmp_path)
    (tmp_path / "checkpoint-10" / "trainer_state.json").write_text(
        json.dumps({"best_model_checkpoint": "/elsewhere/out/checkpoint-9"})
    )
    assert f"give {tmp_path / 'checkpoint-9'}, which its trainer calls the best" in refused(tmp_path)
    hf(2).save_pretrained(tmp_path)
    assert inner(tmp_path) == fingerprint(hf(2).state_dict())


def test_adapter_folders_are_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    save_file({"base_model.model.a.lora_A.weight": torch.ones(2, 2)}, tmp_path / "adapter_model.safetensors")
    for arch in (None, ARCH, f"hf:{tmp_path}"):
        assert "merge it into the model first" in refused(tmp_path, arch=arch)


def timm_folder(folder: Path, weights: dict[str, torch.Tensor], **changes: Any) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(weights, folder / "model.safetensors")
    record = {"architecture": "test_vit", "num_classes": 5, "num_features": 64, "model_args": {"img_size": 32}}
    (folder / "config.json").write_text(json.dumps(record | {"pretrained_cfg": CONFIG} | changes))
    return folder


@pytest.mark.parametrize("safe", [True, False])
def test_a_folder_that_timm_saved(tmp_path: Path, safe: bool) -> None:
    model = timm.create_model("test_vit", num_classes=5)
    save_for_hf(model, tmp_path, safe_serialization=safe)
    loaded = load_model(str(tmp_path))
    assert loaded.fingerprint == fingerprint(model.state_dict())
    assert loaded.preprocess.size == (160, 160)


@pytest.mark.parametrize("prefix", ["", "timm_model.", "module."])
def test_a_folder_from_timms_hub(tmp_path: Path, prefix: str) -> None:
    weights = vit().state_dict()
    names = ["cat", "dog", "eel", "fox", "gnu"]
    folder = timm_folder(tmp_path / "hub", put(prefix, weights), label_names=names)
    loaded = load_model(str(folder))
    assert loaded.fingerprint == fingerprint(weights)
    assert loaded.classes == tuple(names)
    wanted = Preprocess((32, 32), interpolation="bilinear", mean=(0.1, 0.2, 0.3), std=(0.5,) * 3)
    assert loaded.preprocess.size == wanted.size
    assert (loaded.preprocess.mean, loaded.preprocess.std) == (wanted.mean, wanted.std)
    assert loaded.preprocess.interpolation == wanted.interpolation


def test_a_folder_from_timms_hub_in_parts(tmp_path: Path) -> None:
    weights = vit(global_pool="avg").state_dict()
    folder = timm_folder(tmp_path / "hub", weights, model_args={"img_size": 32, "global_pool": "avg"})
    (folder / "model.safetensors").unlink()
    assert "has none of model.safetensors, " in refused(folder)
    in_parts(folder, weights, "safetensors")
    assert load_model(str(folder)).fingerprint == fingerprint(weights)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"architecture": "hf-hub:someone/model"},
            "names the architecture 'hf-hub:someone/model', which timm does not",
        ),
        ({"architecture": 3}, "names the architecture '3', which timm does not have"),
        ({"architecture": "vit_tiny_patch16_224"}, "does not fit timm:vit_tiny_patch16_224"),
        ({"model_args": {"checkpoint_path": "a.pth"}}, "'checkpoint_path', is 'a.pth': leave it out"),
        ({"num_classes": "5"}, "'num_classes', is '5': give a int that fits"),
        ({"num_classes": 9}, "2 of another shape (first: head.weight is (5, 64), not (9, 64))"),
        ({"pretrained_cfg": CONFIG | {"mean": "x"}}, "gives mean as 'x': give a list of numbers"),
        ({"pretrained_cfg": 3}, "holds '3', not an object"),
        ({"label_names": {"a": 1}}, "gives label_names as \"{'a': 1}\": give a list of names"),
        ({"label_names": ["cat"]}, "names 1 classes but has 5 logits"),
    ],
)
def test_a_timm_folder_that_is_not_right(tmp_path: Path, changes: dict[str, Any], sentence: str) -> None:
    assert sentence in refused(timm_folder(tmp_path / "hub", vit().state_dict(), **changes))


def test_what_a_timm_folder_names_is_not_read(tmp_path: Path) -> None:
    torch.save(vit(1).state_dict(), tmp_path / "other.pt")
    elsewhere = {"file": str(tmp_path / "other.pt"), "hf_hub_id": "a/b", "url": "http://a", "custom_load": True}
    folder = timm_folder(tmp_path / "hub", vit().state_dict(), pretrained_cfg=CONFIG | elsewhere)
    assert load_model(str(folder)).fingerprint == fingerprint(vit().state_dict())


MADE: dict[str, dict[str, Any]] = {
    "in_chans=1": {"in_chans": 1},
    "global_pool=avg": {"global_pool": "avg"},
    "in_chans=4,global_pool=avg": {"in_chans": 4, "global_pool": "avg"},
    "class_token=false,global_pool=avg": {"class_token": False, "global_pool": "avg"},
    "qkv_bias=False": {"qkv_bias": False},
    "global_pool=avg,fc_norm=false": {"global_pool": "avg", "fc_norm": False},
    "init_values=0.1": {"init_values": 0.1},
}


@pytest.mark.parametrize("given", MADE)
def test_arguments_given_with_arch(tmp_path: Path, given: str) -> None:
    model = vit(**MADE[given])
    images = torch.randn(2, MADE[given].get("in_chans", 3), 32, 32)
    torch.save({"state_dict": put("model.", model.state_dict())}, tmp_path / "weights.pt")
    mean = (0.5,) * images.shape[1]
    preprocess = Preprocess((32, 32), mean=mean, std=mean)
    loaded = load_model(str(tmp_path / "weights.pt"), arch=f"{ARCH},{given}", preprocess=preprocess)
    torch.testing.assert_close(loaded.module(images), model(images))
    factory, named = arch_factory(f"{ARCH},{given}")
    assert (factory, named) == ("timm:create_model", {"model_name": "test_vit", **MADE[given]})
    assert arch_sizes(f"{ARCH},{given}", {}, "weights")[0] == MADE[given]


@pytest.mark.parametrize("given", ["in_chans=1", "global_pool=avg", "in_chans=4,global_pool=avg"])
def test_arguments_inferred_from_the_weights(tmp_path: Path, given: str) -> None:
    model = vit(**MADE[given])
    images = torch.randn(2, MADE[given].get("in_chans", 3), 32, 32)
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    mean = (0.5,) * images.shape[1]
    loaded = load_model(str(tmp_path / "weights.pt"), arch=ARCH)
    assert (loaded.preprocess.mean, loaded.preprocess.std) == (mean, mean)
    torch.testing.assert_close(loaded.module(images), model(images))
    assert ("global_pool=avg, as the weights have fc_norm" in (loaded.weights_note or "")) == ("pool" in given)


@pytest.mark.parametrize("channels", [1, 4])
def test_channels_whose_mean_nobody_gives_are_asked_for(tmp_path: Path, channels: int) -> None:
    weights = timm.create_model("deit_tiny_patch16_224", img_size=32, depth=1, in_chans=channels).state_dict()
    said = refused(tmp_path / "weights.pt", weights, arch="timm:deit_tiny_patch16_224,depth=1")
    assert f"takes images of {channels} channels, not 3: give `mean` and `std` with {channels} numbers each" in said


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("in_chans", "has 'in_chans': give arguments as NAME=VALUE, such as in_chans=1"),
        ("hats=1", "'hats', is none that a file may give"),
        ("in_chans=x", "'in_chans', is 'x': give a int that fits"),
        ("checkpoint_path=a.pth", "'checkpoint_path', is 'a.pth': leave it out"),
        ("global_pool=tail", "timm:test_vit,global_pool=tail cannot be made"),
        ("num_heads=7", "timm:test_vit,num_heads=7 cannot be made"),
    ],
)
def test_arguments_that_a_model_does_not_take(tmp_path: Path, given: str, sentence: str) -> None:
    assert sentence in refused(tmp_path / "weights.pt", vit().state_dict(), arch=f"{ARCH},{given}")


def test_a_timm_model_that_transformers_saved(tmp_path: Path) -> None:
    config = transformers.TimmWrapperConfig(architecture="test_vit", num_labels=5, model_args={"img_size": 32})
    model = transformers.TimmWrapperForImageClassification(config)
    model.save_pretrained(tmp_path)
    wanted = fingerprint(model.timm_model.state_dict())
    assert load_model(str(tmp_path)).fingerprint == wanted
    assert load_model(str(tmp_path / "model.safetensors"), arch=f"hf:{tmp_path}").fingerprint == wanted


def test_a_model_of_several_inputs(tmp_path: Path) -> None:
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    vision = {**sizes, "num_patches": 4, "patch_size": 4}
    config = transformers.Siglip2Config(vision_config=vision, text_config={**sizes, "vocab_size": 20})
    transformers.Siglip2ForImageClassification(config).save_pretrained(tmp_path)
    assert "takes more than images (pixel_attention_mask, spatial_shapes)" in refused(tmp_path)

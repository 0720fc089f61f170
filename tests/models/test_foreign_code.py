"""What a model file or folder names is never run, asked for or fetched: neither code nor other files."""

from __future__ import annotations

import io
import json
import pickle
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
import transformers
from torch import nn

from tests.models.test_checkpoint_errors import SIZES, Code, record, refused, weights
from vitfx.models.checkpoint import load_model
from vitfx.models.factory import _FACTORIES, build_from_factory
from vitfx.models.inert import pickled_code
from vitfx.models.model_file import read_model_file
from vitfx.support.errors import UserError

HF = {"image_size": 8, "patch_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8}
HF |= {"intermediate_size": 8, "num_labels": 3}
EVIL = """
from pathlib import Path
Path({marker!r}).mkdir()
from transformers import PretrainedConfig, ViTConfig, ViTForImageClassification
class EvilConfig(PretrainedConfig):
    model_type = "evil"
class EvilModel(ViTForImageClassification):
    config_class = EvilConfig
"""


@pytest.fixture(autouse=True)
def _no_network_and_a_yes_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        pytest.fail("the network was asked for")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, fail)
    for name in ("create_connection", "getaddrinfo"):
        monkeypatch.setattr(socket, name, fail)
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was asked"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**HF))
    model.save_pretrained(tmp_path / "hf")
    (tmp_path / "hf" / "evil.py").write_text(EVIL.format(marker=str(tmp_path / "marker")))
    return tmp_path / "hf"


def change(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


LOCAL = {"AutoConfig": "evil.EvilConfig", "AutoModelForImageClassification": "evil.EvilModel"}
REMOTE = {name: f"someone/evil--{code}" for name, code in LOCAL.items()}


@pytest.mark.parametrize("auto_map", [LOCAL, REMOTE, {"AutoConfig": 3}, [1]], ids=["local", "remote", "3", "list"])
@pytest.mark.parametrize("model_type", ["evil", "vit", None])
@pytest.mark.parametrize("apart", [False, True])
def test_code_in_a_folder_does_not_run(
    folder: Path, tmp_path: Path, auto_map: Any, model_type: str | None, apart: bool
) -> None:
    change(folder / "config.json", model_type=model_type, auto_map=auto_map)
    spec, arch = folder, None
    if apart:
        spec, arch = tmp_path / "weights.pt", f"hf:{folder}"
        torch.save(transformers.ViTForImageClassification(transformers.ViTConfig(**HF)).state_dict(), spec)
    if model_type == "vit":
        # transformers has a ViT of its own, and that is what is made.
        assert type(load_model(str(spec), arch=arch).module.model).__module__.startswith("transformers.")
    else:
        assert "code in the folder is never run" in refused(spec, arch=arch)
    assert not (tmp_path / "marker").exists()
    assert sys.stdin.read() == "y\n" * 9


@pytest.mark.parametrize(
    "changes",
    [
        {"_attn_implementation": "kernels-community/flash-attn"},
        {"attn_implementation": "kernels-community/flash-attn"},
        {"vision_config": {"_attn_implementation_internal": "someone/kernel"}},
        {"configuration_files": ["config.9.json"]},
        {"name_or_path": "someone/model", "_name_or_path": "someone/model"},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}},
        {"model_type": "timm_wrapper", "architecture": "hf-hub:someone/model"},
        {"model_type": "timm_wrapper", "architecture": "hf_hub:someone/model"},
        {"model_type": "timm_wrapper", "architecture": "local-dir:/models"},
        {"model_type": "timm_wrapper", "architecture": 3},
        {"model_type": "timm_wrapper", "architecture": "resnet18", "model_args": {"checkpoint_path": "a.pth"}},
        {
            "model_type": "timm_wrapper",
            "architecture": "resnet18",
            "model_args": {"pretrained_cfg": {"url": "http://a"}},
        },
        {"model_type": None, "architecture": "hf-hub:someone/model"},
        {"model_type": "timm_backbone", "backbone": "resnet18", "use_pretrained_backbone": True},
        {"model_type": "dpt", "backbone": "someone/model", "use_pretrained_backbone": True},
    ],
)
def test_a_configuration_fetches_nothing(folder: Path, changes: dict[str, Any]) -> None:
    change(folder / "config.json", **changes)
    try:
        assert load_model(str(folder)).preprocess.size == (8, 8)
    except UserError as error:
        assert "\n" not in str(error)


def test_an_adapter_beside_a_model_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "someone/model"}))
    assert "merge it into the model" in refused(folder)


def test_pickled_weights_in_a_folder_do_not_run(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"a": Code(tmp_path / "marker")}, folder / "pytorch_model.bin")
    assert "cannot be loaded as an image classifier" in refused(folder)
    assert not (tmp_path / "marker").exists()


BEYOND = [
    name for name in torchvision.models.list_models() if name not in torchvision.models.list_models(torchvision.models)
]


@pytest.mark.parametrize("name", [*BEYOND, "ssd300_vgg16", "torchvision.models:vit_b_16", "", None, 3, ["vit_b_16"]])
def test_models_with_a_backbone_to_download_are_refused(tmp_path: Path, name: object) -> None:
    contents = record(factory="torchvision.models:get_model", kwargs={"name": name})
    assert re.search(r"is no image classifier of torchvision|'name', is", refused(tmp_path / "model.pt", contents))
    if name in BEYOND:
        said = refused(tmp_path / "model.pt", weights(), arch=f"torchvision:{name}")
        assert "torchvision has no image classifier of this name" in said


@pytest.mark.parametrize(
    "name", ["hf-hub:a/b", "hf_hub:a/b", "local-dir:/models", "a/b", "vit_tiny_patch16_224:x", 3, None]
)
def test_timm_models_from_elsewhere_are_refused(tmp_path: Path, name: object) -> None:
    contents = record(factory="timm:create_model", kwargs={"model_name": name})
    said = refused(tmp_path / "model.pt", contents)
    assert re.search(r"is no image classifier of timm|'model_name', is", said)


FACTORIES: dict[str, dict[str, Any]] = {
    "vitfx.models:ViT": SIZES,
    "torchvision.models:get_model": {"name": "vit_b_16"},
    "torchvision.models:VisionTransformer": {},
    "timm:create_model": {"model_name": "vit_tiny_patch16_224"},
    "timm.models:VisionTransformer": {"embed_dim": 192},
    "transformers:ViTForImageClassification": HF,
}
ARGUMENTS = {
    "weights": "DEFAULT", "weights_backbone": "DEFAULT", "pretrained": True, "checkpoint_path": "a.pth",
    "cache_dir": "/models", "pretrained_cfg": {"url": "http://a"}, "pretrained_cfg_overlay": {"hf_hub_id": "a/b"},
    "pretrained_cfg_": 1, "backbone": "resnet18", "use_pretrained_backbone": True, "backbone_config": {},
    "auto_map": LOCAL, "attn_implementation": "kernels-community/a", "quantization_config": {}, "block_fn": "os.system",
    "progress": True, "url": "http://a", "features_only": True, 3: 4,
}  # fmt: skip


@pytest.mark.parametrize("name", ARGUMENTS)
@pytest.mark.parametrize("factory", FACTORIES)
def test_arguments_that_are_not_listed_are_refused(factory: str, name: Any) -> None:
    with pytest.raises(UserError, match=r"is none that a file may give|leave it out"):
        build_from_factory(factory, FACTORIES[factory] | {name: ARGUMENTS[name]})


@pytest.mark.parametrize("factory", FACTORIES)
def test_listed_arguments_are_refused_with_values_of_another_type(factory: str) -> None:
    (arguments,) = (known for names, known in _FACTORIES.items() if re.fullmatch(names, factory))
    wrong: dict[type, list[object]] = {
        int: ["8", 2.5, True, [8], 10**7],
        float: ["0.1", True, [0.1]],
        bool: [1, "true", []],
        str: [3, ["a"], {}],
        list: ["8", [[8]], [2.5], {}, True],
        dict: [[], "a", {"a": []}],
        type(None): [True, "a", 1, {}],
    }
    for kind, names in arguments.items():
        for name in names.split():
            for value in wrong[kind]:
                with pytest.raises(UserError):
                    build_from_factory(factory, FACTORIES[factory] | {name: value})


def test_what_a_library_saves_of_itself_is_listed() -> None:
    config = transformers.ViTConfig(**HF).to_dict()
    assert isinstance(build_from_factory("transformers:ViTForImageClassification", config), nn.Module)
    dinov2 = transformers.Dinov2Config(num_hidden_layers=1, hidden_size=48, num_attention_heads=2).to_dict()
    assert isinstance(build_from_factory("transformers:Dinov2ForImageClassification", dinov2), nn.Module)
    off = {"model_name": "vit_tiny_patch16_224", "pretrained": False, "checkpoint_path": None}
    assert isinstance(build_from_factory("timm:create_model", off), timm.models.VisionTransformer)


def _refusal(contents: object, path: Path, **options: Any) -> Exception:
    torch.save(contents, path, **options)
    with pytest.raises(pickle.UnpicklingError) as caught:
        torch.load(path, weights_only=True)
    return caught.value


@pytest.mark.parametrize("zipped", [True, False])
def test_torch_names_the_code_that_it_refuses(tmp_path: Path, zipped: bool) -> None:
    """Where torch words this otherwise, `pickled_code` should follow; until then the sentence names no code."""
    path = tmp_path / "model.pt"
    options = {"_use_new_zipfile_serialization": zipped}
    assert pickled_code(_refusal(Code(tmp_path / "marker"), path, **options)) == "posix.mkdir"
    assert pickled_code(_refusal(nn.Linear(1, 1), path, **options)) == "torch.nn.modules.linear.Linear"


@pytest.mark.parametrize(
    "wording", ["", "Unsupported class os.mkdir", "GLOBAL", "this file may run code\nso it is not read"]
)
def test_whatever_torch_says_the_sentence_is_true(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wording: str
) -> None:
    path = tmp_path / "model.pt"
    torch.save(Code(tmp_path / "marker"), path)
    load: Callable[..., Any] = torch.load

    def reworded(*arguments: Any, weights_only: bool, **options: Any) -> Any:
        if weights_only:
            raise pickle.UnpicklingError(wording)
        return load(*arguments, weights_only=weights_only, **options)

    monkeypatch.setattr(torch, "load", reworded)
    assert "is cut short or no model file, or it holds pickled code" in refused(path)
    assert not (tmp_path / "marker").exists()
    read_model_file(path, trust_pickle=True)
    assert (tmp_path / "marker").exists()


def test_a_trusted_file_runs_its_code_only_where_it_has_some(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[bool] = []
    load: Callable[..., Any] = torch.load

    def noted(*arguments: Any, weights_only: bool, **options: Any) -> Any:
        tried.append(weights_only)
        return load(*arguments, weights_only=weights_only, **options)

    monkeypatch.setattr(torch, "load", noted)
    torch.save(weights(), tmp_path / "plain.pt")
    read_model_file(tmp_path / "plain.pt", trust_pickle=True)
    assert tried == [True]
    torch.save(Code(tmp_path / "marker"), tmp_path / "code.pt")
    read_model_file(tmp_path / "code.pt", trust_pickle=True)
    assert tried == [True, True, False] and (tmp_path / "marker").exists()

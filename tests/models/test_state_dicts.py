"""vitfx.models.state_dicts: the right weights out of what training scripts save, or a sentence; never others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from tests.models.test_checkpoint_errors import refused
from vitfx.models.checkpoint import LoadedModel, load_model
from vitfx.models.weights import fingerprint

ARCH = "timm:test_vit"
Weights = dict[str, torch.Tensor]


def vit(seed: int = 0, **options: Any) -> nn.Module:
    torch.manual_seed(seed)
    made: nn.Module = timm.create_model("test_vit", **{"img_size": 32, "num_classes": 5, **options}).eval()
    return made


def put(prefix: str, weights: Weights) -> Weights:
    return {prefix + name: value for name, value in weights.items()}


def within(weights: Weights, wrapper: str) -> Weights:
    """As where a wrapper stands around each block, below the model."""
    return {name.replace("blocks.0.", f"blocks.0.{wrapper}"): value for name, value in weights.items()}


RAW, AVERAGE = vit(0).state_dict(), vit(1).state_dict()
LOSS = {"criterion.weight": torch.ones(5)}


def loaded(folder: Path, contents: Any, **options: Any) -> LoadedModel:
    torch.save(contents, folder / "weights.pth")
    return load_model(str(folder / "weights.pth"), **{"arch": ARCH, **options})


def holds(model: LoadedModel, weights: Weights) -> bool:
    return model.fingerprint == fingerprint(weights)


WRAPPED: dict[str, Any] = {
    "compiled DDP": put("_orig_mod.module.", RAW),
    "DDP of compiled": put("module._orig_mod.", RAW),
    "twice": put("module.module._orig_mod._orig_mod.", RAW),
    "a compiled block": within(RAW, "_orig_mod."),
    "FSDP and checkpointing": put("_fsdp_wrapped_module.", within(RAW, "_checkpoint_wrapped_module.")),
    "a DDP block": within(RAW, "module."),
    "Lightning": {"state_dict": put("model.", RAW), "pytorch-lightning_version": "2.5.0", "epoch": 3},
    "Lightning, compiled": {"state_dict": put("model._orig_mod.", RAW) | LOSS, "hyper_parameters": {"lr": 0.1}},
    "Lightning, net": {"state_dict": put("net.backbone.", RAW)},
    "a loss beside": put("module.model.", RAW) | put("module.", LOSS),
    "DeepSpeed": {"module": RAW, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}},
    "trainer with optimizer": {"model": RAW, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}, "scaler": {}},
    "any key": {"net": {"weights": put("encoder.", RAW)}, "args": {"lr": 1.0}},
    "only a teacher": {"teacher": put("backbone.", RAW)},
    "only an average": {"model_ema": put("module.", RAW)},
    "an average equal to the weights": {"state_dict": RAW, "state_dict_ema": {k: v.clone() for k, v in RAW.items()}},
    "a step beside": RAW | {"epoch": 3},
}


@pytest.mark.parametrize("contents", WRAPPED.values(), ids=WRAPPED)
def test_wrappers_and_prefixes_in_any_order_and_depth(tmp_path: Path, contents: Any) -> None:
    assert holds(loaded(tmp_path, contents), RAW)


def test_plain_weights_need_no_note_and_others_have_one(tmp_path: Path) -> None:
    assert loaded(tmp_path, RAW).weights_note is None
    path = tmp_path / "weights.pth"
    note = loaded(tmp_path, {"state_dict": put("model.", RAW) | LOSS}).weights_note
    assert note == f"weights: state_dict.model of {path}; 1 other tensors beside them are left out"
    assert loaded(tmp_path, {"teacher": put("backbone.", RAW)}).weights_note == (
        f"weights: the average of the weights, teacher.backbone of {path}"
    )


@pytest.mark.parametrize("wrap", [lambda model: model, nn.DataParallel, torch.compile])
def test_an_averaged_model(tmp_path: Path, wrap: Callable[[nn.Module], Any]) -> None:
    model = loaded(tmp_path, AveragedModel(wrap(vit())).state_dict())
    assert holds(model, RAW)
    assert "the average of the weights" in (model.weights_note or "")


@pytest.mark.parametrize("name", ["vit_b_32"])
def test_torchvision_too(tmp_path: Path, name: str) -> None:
    weights = torchvision.models.get_model(name, image_size=64, num_classes=3).state_dict()
    model = loaded(tmp_path, {"state_dict": put("model._orig_mod.", weights)}, arch=f"torchvision:{name}")
    assert holds(model, weights)


BOTH: dict[str, Any] = {
    "timm": {"epoch": 9, "arch": "test_vit", "state_dict": RAW, "state_dict_ema": AVERAGE, "metric": 91.0},
    "DeiT": {"model": RAW, "model_ema": AVERAGE, "epoch": 9},
    "DINO": {"student": put("module.backbone.", RAW), "teacher": put("backbone.", AVERAGE), "epoch": 3},
    "ema": {"model": put("module.", RAW), "ema": AVERAGE},
    "ema_state_dict": {"state_dict": RAW, "ema_state_dict": put("module.", AVERAGE)},
    "nested": {"state_dict": put("model.", RAW), "callbacks": {"EMACallback": {"weights": put("model.", AVERAGE)}}},
    "one state dict": {"state_dict": put("model.", RAW) | put("model_ema.module.", AVERAGE)},
    "ema-pytorch": put("online_model.", RAW) | put("ema_model.", AVERAGE) | {"step": torch.tensor(3)},
    "averaged": {"model": RAW, "swa_model": put("module.", AVERAGE) | {"n_averaged": torch.tensor(4)}},
    "unnamed average": {"model": RAW, "model2": put("module.", AVERAGE) | {"n_averaged": torch.tensor(4)}},
    "Lightning's WeightAveraging": {
        "state_dict": put("model.", AVERAGE),
        "current_model_state": put("model.", RAW),
        "averaging_state": {"n_averaged": torch.tensor(4)},
    },
    "unlike wrappers": put("net.", RAW) | put("ema.", within(AVERAGE, "_orig_mod.")),
}


@pytest.mark.parametrize("contents", BOTH.values(), ids=BOTH)
def test_weights_and_their_average(tmp_path: Path, contents: Any) -> None:
    """Nothing says which were evaluated, so the user is asked."""
    path = tmp_path / "weights.pth"
    said = refused(path, contents, arch=ARCH)
    assert said.endswith("choose those that were evaluated with `weights` ema or `weights` raw"), said
    for which, weights in (("raw", RAW), ("ema", AVERAGE)):
        model = load_model(str(path), arch=ARCH, weights=which)
        assert holds(model, weights)
        assert ("the average of the weights" in (model.weights_note or "")) == (which == "ema")


def test_the_question_names_both(tmp_path: Path) -> None:
    said = refused(tmp_path / "weights.pth", BOTH["DINO"], arch=ARCH)
    assert "has both weights (student.module.backbone) and their average (teacher.backbone): choose" in said


@pytest.mark.parametrize("ema", [{"shadow_params": list(AVERAGE.values())}, put("x.", dict(list(AVERAGE.items())[:9]))])
def test_an_average_that_has_no_fitting_names(tmp_path: Path, ema: Any) -> None:
    path = tmp_path / "weights.pth"
    for which in (None, "ema"):
        said = refused(path, {"model": RAW, "ema": ema}, arch=ARCH, weights=which)
        assert "has an average of the weights (ema" in said
        assert "`weights` raw" in said
    assert holds(load_model(str(path), arch=ARCH, weights="raw"), RAW)


@pytest.mark.parametrize(
    ("contents", "which", "sentence"),
    [
        ({"model": RAW}, "ema", "has no averaged weights that fit timm:test_vit, only model: give `weights` raw"),
        (RAW, "ema", "has no averaged weights that fit timm:test_vit, only the weights themselves"),
        ({"model_ema": RAW}, "raw", "has no raw weights that fit timm:test_vit, only model_ema: give `weights` ema"),
        ({"a": RAW, "b": AVERAGE}, None, "has several weights that fit timm:test_vit, a, b: save the right ones"),
        ({"a": RAW, "b": AVERAGE}, "raw", "has several weights that fit timm:test_vit, a, b: save the right ones"),
        (put("left.", RAW) | put("right.", AVERAGE), None, "has several weights that fit timm:test_vit, left, right"),
        ({"model": RAW}, "best", "the weights asked for are 'best': give one of ema, raw"),
    ],
)
def test_a_choice_that_is_not_there(tmp_path: Path, contents: Any, which: str | None, sentence: str) -> None:
    assert sentence in refused(tmp_path / "weights.pth", contents, arch=ARCH, weights=which)


def test_raw_may_be_said_of_plain_weights(tmp_path: Path) -> None:
    assert holds(loaded(tmp_path, RAW, weights="raw"), RAW)


def test_a_model_that_names_itself_has_no_choice() -> None:
    assert "has only one set of weights, so `weights` ema is not needed" in refused(Path("demo"), weights="ema")


LORA = {
    "peft": {"base_model.model.blocks.0.attn.qkv.lora_A.weight": torch.ones(2, 2)},
    "beside the model": RAW | {"blocks.0.attn.qkv.lora_B.default.weight": torch.ones(2, 2)},
    "in Lightning": {"state_dict": {"model.blocks.0.attn.qkv.lora_A": torch.ones(2, 2)}},
    "LoHa": {"blocks.0.attn.qkv.hada_w1_a": torch.ones(2, 2)},
    "IA3": {"base_model.model.blocks.0.mlp.fc1.ia3_l": torch.ones(2, 2)},
}


@pytest.mark.parametrize("arch", [ARCH, None])
@pytest.mark.parametrize("contents", LORA.values(), ids=LORA)
def test_adapters_are_refused(tmp_path: Path, contents: Any, arch: str | None) -> None:
    assert "merge the adapter into its model first" in refused(tmp_path / "weights.pth", contents, arch=arch)
    if all(isinstance(value, torch.Tensor) for value in contents.values()):
        save_file(contents, tmp_path / "adapter_model.safetensors")
        assert "merge the adapter" in refused(tmp_path / "adapter_model.safetensors", arch=arch)


MISFITS = {
    "no head": (
        put("backbone.", vit(num_classes=0).state_dict()),
        "with 2 missing (first: head.weight): its classifier",
    ),
    "MAE's pretraining": (
        vit(num_classes=0).state_dict() | {"mask_token": torch.ones(1, 1, 8), "decoder_embed.weight": torch.ones(8, 8)},
        "its classifier is missing, so give weights that were fine-tuned for classification",
    ),
    "another head": (RAW | {"head_dist.weight": torch.ones(5, 64)}, "with 1 unexpected (first: head_dist.weight)"),
    "deeper": (put("model.", vit(depth=8).state_dict()), "24 unexpected (first: blocks.6.norm1.weight), all beginning"),
    "foreign": (
        {"vit.a.weight": torch.ones(2), "vit.b.weight": torch.ones(2)},
        "2 unexpected (first: vit.a.weight), all beginning with vit.",
    ),
}


@pytest.mark.parametrize(("contents", "sentence"), MISFITS.values(), ids=MISFITS)
def test_a_misfit_says_how_the_names_differ(tmp_path: Path, contents: Any, sentence: str) -> None:
    for wrapped in (contents, {"state_dict": contents, "optimizer": {"m": torch.ones(3)}}):
        said = refused(tmp_path / "weights.pth", wrapped, arch=ARCH)
        assert "does not fit timm:test_vit" in said
        assert sentence in said, said


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int64, torch.bool])
def test_integers_are_no_weights(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.save({name: value.to(dtype) for name, value in RAW.items()}, tmp_path / "model.pt")
    said = refused(tmp_path / "model.pt", arch=ARCH)
    assert f"is of {dtype}, as quantized weights are without their scales: give the weights in floating point" in said


def test_a_classifier_of_another_name_is_not_called_missing(tmp_path: Path) -> None:
    renamed = {name.replace("head.", "fc."): value for name, value in RAW.items()}
    torch.save(renamed, tmp_path / "model.pt")
    said = refused(tmp_path / "model.pt", arch=ARCH)
    assert "2 missing (first: head.weight), 2 unexpected (first: fc.weight), all beginning with fc.: name the" in said

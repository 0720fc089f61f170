"""vitfx.models.checkpoint: every kind of model file loads to the model that was saved."""

from __future__ import annotations

from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest
import timm
import torch
import torchvision
import transformers
from safetensors.torch import save_file
from torch import nn
from torch.export import Dim, export

import vitfx.train
from vitfx.graph.trace import to_canonical, trace
from vitfx.images.preprocess import Preprocess
from vitfx.images.splits import open_data
from vitfx.models.checkpoint import ARTIFACT_FORMAT, load_model, save_checkpoint
from vitfx.models.graph_json import encode
from vitfx.models.recipes import timm_recipe, torchvision_recipe
from vitfx.models.vit import ViT
from vitfx.models.weights import fingerprint
from vitfx.support.errors import UserError

TINY = {"image_size": 16, "patch_size": 8, "num_layers": 1, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 16}
TINY |= {"num_classes": 5}
TORCHVISION = "torchvision.models:VisionTransformer"
PREPROCESS = Preprocess(size=(16, 16), interpolation="bilinear", antialias=False, mean=(0.1,) * 3, std=(0.2,) * 3)
HF = {"image_size": 16, "patch_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8}
HF |= {"intermediate_size": 16, "id2label": {0: "cat", 1: "dog", 2: "eel"}, "label2id": {"cat": 0, "dog": 1, "eel": 2}}


def tiny() -> nn.Module:
    model = torchvision.models.VisionTransformer(**TINY).eval()
    # torchvision starts the head at zero, which would hide every other weight.
    nn.init.normal_(model.heads.head.weight)
    return model


def write_tiny(path: Path, model: nn.Module) -> Path:
    save_checkpoint(
        path,
        factory=TORCHVISION,
        kwargs=TINY,
        state_dict=model.state_dict(),
        preprocess=PREPROCESS,
        classes=["a", "b", "c", "d", "e"],
        data="somewhere",
    )
    return path


def assert_same(loaded: nn.Module, model: nn.Module, side: int) -> None:
    """`loaded` is in eval mode and gives the logits of `model`, as a plain tensor."""
    images = torch.randn(3, 3, side, side)
    with torch.no_grad():
        got, wanted = loaded(images), model.eval()(images)
    assert type(got) is torch.Tensor
    assert not any(module.training for module in loaded.modules())
    torch.testing.assert_close(got, getattr(wanted, "logits", wanted))


def test_a_checkpoint_gives_back_what_was_saved(tmp_path: Path) -> None:
    model = tiny()
    loaded = load_model(str(write_tiny(tmp_path / "tiny.pt", model)))
    assert_same(loaded.module, model, 16)
    assert loaded.preprocess == PREPROCESS
    assert loaded.classes == ("a", "b", "c", "d", "e")
    assert loaded.data == "somewhere"
    assert loaded.source == str(tmp_path / "tiny.pt")
    assert loaded.fingerprint == fingerprint(model.state_dict())
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.pt"]


def test_the_same_model_makes_the_same_bytes_under_any_name(tmp_path: Path) -> None:
    model = tiny()
    first, second = write_tiny(tmp_path / "one.pt", model), write_tiny(tmp_path / "two.pt", model)
    assert first.read_bytes() == second.read_bytes()


def test_the_caller_may_say_how_images_are_prepared(tmp_path: Path) -> None:
    preprocess = replace(PREPROCESS, interpolation="nearest")
    assert load_model(str(write_tiny(tmp_path / "tiny.pt", tiny())), preprocess=preprocess).preprocess == preprocess


def test_the_fingerprint_tells_names_dtypes_shapes_and_values_apart() -> None:
    weights = {"a": torch.arange(4.0), "b": torch.ones(2, 2)}
    others = [
        {"a": torch.arange(4.0), "c": torch.ones(2, 2)},
        {"a": torch.arange(4.0), "b": torch.ones(2, 2, dtype=torch.float64)},
        {"a": torch.arange(4.0), "b": torch.ones(4)},
        {"a": torch.tensor([0.0, 1.0, 2.0, 3.0000005]), "b": torch.ones(2, 2)},
    ]
    assert len({fingerprint(one) for one in [weights, *others]}) == 5
    assert fingerprint(weights) == fingerprint({"b": torch.ones(2, 2).T, "a": weights["a"]})
    assert len(fingerprint({"half": torch.ones(3, dtype=torch.bfloat16), "count": torch.tensor(3)})) == 64


@pytest.mark.parametrize("wrap", ["plain", "state_dict", "model", "module.", "nested"])
def test_a_bare_state_dict_with_arch(tmp_path: Path, wrap: str) -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=48, num_classes=7)
    weights = model.state_dict()
    prefixed = {f"module.{name}": value for name, value in weights.items()}
    contents = {
        "plain": weights,
        "state_dict": {"state_dict": weights, "epoch": 3},
        "model": {"model": weights, "optimizer": {"lr": 0.1}},
        "module.": prefixed,
        "nested": {"state_dict": {"model": prefixed}},
    }
    torch.save(contents[wrap], tmp_path / "weights.pth")
    loaded = load_model(str(tmp_path / "weights.pth"), arch="timm:vit_tiny_patch16_224")
    assert_same(loaded.module, model, 48)
    assert loaded.preprocess == timm_recipe(model.pretrained_cfg, "vit", (48, 48))
    assert loaded.classes is None


@pytest.mark.parametrize(
    ("name", "side"),
    [("deit_tiny_distilled_patch16_224", 32), ("vit_wee_patch16_reg1_gap_256", 48)],
)
def test_timm_image_size_and_classes_come_from_the_shapes(tmp_path: Path, name: str, side: int) -> None:
    model = timm.create_model(name, img_size=side, num_classes=3)
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    loaded = load_model(str(tmp_path / "weights.safetensors"), arch=f"timm:{name}")
    assert loaded.preprocess.size == (side, side)
    assert_same(loaded.module, model, side)


def test_torchvision_by_name(tmp_path: Path) -> None:
    model = torchvision.models.vit_b_32(image_size=64, num_classes=6).eval()
    nn.init.normal_(model.heads.head.weight)
    torch.save(model.half().state_dict(), tmp_path / "weights.pt")
    loaded = load_model(str(tmp_path / "weights.pt"), arch="torchvision:vit_b_32")
    assert loaded.preprocess == torchvision_recipe("vit_b_32", (64, 64))
    assert_same(loaded.module, model.float(), 64)


@pytest.fixture
def hf_folder(tmp_path: Path) -> tuple[Path, nn.Module]:
    model = transformers.ViTForImageClassification(transformers.ViTConfig(**HF)).eval()
    folder = tmp_path / "hf"
    model.save_pretrained(folder)
    size = {"height": 16, "width": 16}
    transformers.ViTImageProcessor(size=size, image_mean=[0.1] * 3, image_std=[0.3] * 3).save_pretrained(folder)
    return folder, model


def test_a_hugging_face_folder(hf_folder: tuple[Path, nn.Module]) -> None:
    folder, model = hf_folder
    loaded = load_model(str(folder))
    assert_same(loaded.module, model, 16)
    assert loaded.classes == ("cat", "dog", "eel")
    own = Preprocess((16, 16), "bilinear", mean=loaded.preprocess.mean, std=loaded.preprocess.std)
    assert loaded.preprocess == replace(own, corner="down", reader="PIL-upright")
    assert (own.mean, own.std) == (pytest.approx((0.1,) * 3), pytest.approx((0.3,) * 3))
    for spec in (folder, folder / "model.safetensors"):
        assert load_model(str(spec), arch=f"hf:{folder}").fingerprint == loaded.fingerprint


def test_weights_apart_from_their_hugging_face_folder(tmp_path: Path, hf_folder: tuple[Path, nn.Module]) -> None:
    folder, model = hf_folder
    nn.init.normal_(model.classifier.weight)
    torch.save(model.state_dict(), tmp_path / "tuned.pt")
    (folder / "preprocessor_config.json").unlink()
    loaded = load_model(str(tmp_path / "tuned.pt"), arch=f"hf:{folder}")
    assert_same(loaded.module, model, 16)
    # What ViTImageProcessor does where nothing is said.
    own = Preprocess((16, 16), "bilinear", mean=(0.5,) * 3, std=(0.5,) * 3)
    assert loaded.preprocess == replace(own, corner="down", reader="PIL-upright")


def test_a_hugging_face_model_through_a_checkpoint(tmp_path: Path) -> None:
    model = transformers.DeiTForImageClassification(transformers.DeiTConfig(**HF))
    save_checkpoint(
        tmp_path / "deit.pt",
        factory="transformers:DeiTForImageClassification",
        kwargs=HF,
        state_dict=model.state_dict(),
        preprocess=PREPROCESS,
    )
    assert_same(load_model(str(tmp_path / "deit.pt")).module, model, 16)


def test_an_exported_program(tmp_path: Path) -> None:
    model = tiny()
    batch = {0: Dim("batch", min=1, max=64)}
    program = export(model, (torch.randn(2, 3, 16, 16),), dynamic_shapes=(batch,), strict=False)
    torch.export.save(program, tmp_path / "tiny.pt2")
    loaded = load_model(str(tmp_path / "tiny.pt2"))
    assert_same(loaded.module, model, 16)
    assert loaded.preprocess == Preprocess(size=(16, 16))
    assert loaded.fingerprint == fingerprint(model.state_dict())
    again = trace(loaded.module, torch.randn(2, 3, 16, 16))
    torch.testing.assert_close(again(images := torch.randn(3, 3, 16, 16)), model(images))


def test_a_whole_module_only_when_trusted(tmp_path: Path) -> None:
    model = tiny()
    torch.save(model, tmp_path / "module.pt")
    with pytest.raises(UserError, match=r"holds pickled code \(torchvision.*`trust_pickle`"):
        load_model(str(tmp_path / "module.pt"))
    loaded = load_model(str(tmp_path / "module.pt"), trust_pickle=True)
    assert_same(loaded.module, model, 16)
    assert loaded.preprocess == Preprocess(size=(16, 16))


def test_a_whole_timm_module_brings_its_preprocessing(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=4)
    torch.save(model, tmp_path / "module.pt")
    loaded = load_model(str(tmp_path / "module.pt"), trust_pickle=True)
    assert loaded.preprocess == timm_recipe(model.pretrained_cfg, "vit", (32, 32))


def test_a_pruned_artifact(tmp_path: Path) -> None:
    model = ViT(image_size=16, patch_size=8, channels=3, classes=4, width=16, depth=2, heads=2, mlp=24).eval()
    canonical = to_canonical(model, torch.randn(2, 3, 16, 16)).graph_module
    record = {
        "format": ARTIFACT_FORMAT,
        "graph": encode(canonical),
        "state_dict": canonical.state_dict(),
        "preprocess": PREPROCESS.to_json(),
        "classes": ["a", "b", "c", "d"],
        "data": None,
        "provenance": {},
    }
    torch.save(record, tmp_path / "pruned.pt")
    loaded = load_model(str(tmp_path / "pruned.pt"))
    assert_same(loaded.module, model, 16)
    assert loaded.preprocess == PREPROCESS
    assert loaded.classes == ("a", "b", "c", "d")
    assert loaded.fingerprint == fingerprint(canonical.state_dict())


def test_the_real_model_loads(shared: Path) -> None:
    loaded = load_model(str(shared / "models" / "vit_s14_tinyimagenet.pt"))
    assert loaded.preprocess == Preprocess(size=(112, 112))
    assert loaded.data == "tiny-imagenet-200"
    assert len(loaded.classes or ()) == 200
    assert sum(weight.numel() for weight in loaded.module.parameters()) > 21_000_000


def test_the_demo_recognises_held_out_digits() -> None:
    loaded = load_model("demo")
    assert isinstance(loaded.module, ViT)
    assert loaded.data == "digits"
    images = open_data("digits", loaded.preprocess, loaded.classes).evaluation.load()
    with torch.no_grad():
        right = loaded.module(images.pixels).argmax(1) == images.labels
    assert right.double().mean() >= 0.95


def test_the_demo_is_small_and_says_how_it_was_made() -> None:
    path = Path(str(resources.files("vitfx.models") / "demo" / "digits.pt"))
    assert path.stat().st_size < 2_000_000
    command = torch.load(path, weights_only=True)["made_by"]
    assert command == "python -m vitfx.train --data digits --out digits.pt"
    assert command in (vitfx.train.__doc__ or "")

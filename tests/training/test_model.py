"""vitfx.training.model: every architecture, weights to begin with, and what does not fit."""

from __future__ import annotations

from dataclasses import replace
from importlib import resources
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from torch import nn
from torch.nn import functional as F
from torchvision.ops import StochasticDepth

from tests.support.records import model_record
from vitfx.graph.trace import to_canonical
from vitfx.images.preprocess import Preprocess
from vitfx.models.checkpoint import load_model, save_checkpoint
from vitfx.models.vit import ViT
from vitfx.support.errors import UserError
from vitfx.training.config import ModelConfig, read_config
from vitfx.training.model import TrainModel, model_from, new_model

CONFIG = replace(
    read_config("tiny-imagenet").model, image_size=16, patch=4, width=8, depth=2, heads=2, mlp=8, attention_dropout=0.1
)
PREPROCESS = Preprocess((16, 16), mean=(0.5,) * 3, std=(0.5,) * 3)
CLASSES = ("ant", "bee", "cat")
TINY = {"image_size": 16, "patch_size": 8, "num_layers": 1, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 16}


def arch(name: str, **sizes: int) -> ModelConfig:
    return replace(CONFIG, arch=name, **sizes)


def saved(made: TrainModel, path: Path) -> nn.Module:
    """What load_model gives of the checkpoint that a training of this model writes."""
    save_checkpoint(
        path,
        factory=made.factory,
        kwargs=made.kwargs,
        state_dict=made.module.state_dict(),
        preprocess=made.preprocess,
        classes=CLASSES,
    )
    return load_model(str(path)).module


def test_the_own_vit_has_its_dropout_and_its_checkpoint_has_none(tmp_path: Path) -> None:
    made = new_model(CONFIG, PREPROCESS, 3)
    assert isinstance(made.module, ViT)
    assert {part.p for part in made.module.modules() if isinstance(part, nn.Dropout)} == {0.1}
    assert [part.p for part in made.module.modules() if isinstance(part, StochasticDepth)] == [0.0, 0.1]
    assert {block.attention.attention_dropout for block in made.module.blocks} == {0.1}
    loaded = saved(made, tmp_path / "model.pt")
    assert {part.p for part in loaded.modules() if isinstance(part, nn.Dropout | StochasticDepth)} == {0.0}
    assert {block.attention.attention_dropout for block in loaded.blocks} == {0.0}


def test_the_canonical_graph_has_neither_dropout_nor_stochastic_depth() -> None:
    module = new_model(CONFIG, PREPROCESS, 3).module.eval()
    images = torch.randn(2, 3, 16, 16)
    graph_module = to_canonical(module, images).graph_module
    parts = [str(node.target) for node in graph_module.graph.nodes]
    parts += [type(part).__name__ for part in graph_module.modules()]
    assert [part for part in parts if "drop" in part.lower() or "stochastic" in part.lower()] == []
    torch.testing.assert_close(graph_module(images), module(images))


@pytest.mark.parametrize(
    ("name", "size"),
    [("timm:vit_tiny_patch16_224", 32), ("torchvision:resnet18", 32), ("timm:resnet10t", 32)],
)
def test_libraries_architectures(name: str, size: int, tmp_path: Path) -> None:
    preprocess = replace(PREPROCESS, size=(size, size))
    made = new_model(arch(name, image_size=size), preprocess, 3)
    loaded = saved(made, tmp_path / "model.pt")
    images = torch.randn(2, 3, size, size)
    assert torch.equal(loaded(images), made.module.eval()(images))
    assert loaded(images).shape == (2, 3)
    assert not {"drop_rate", "dropout"} & made.kwargs.keys()
    said = " ".join(made.notes)
    if name.startswith("torchvision"):
        assert "has no drop_path: model.drop_path does nothing" in said
        assert "resnet18 takes no dropout or attention_dropout" in said
    elif name.startswith("timm:vit"):
        assert said == ""
        assert made.module.blocks[-1].drop_path1.drop_prob == pytest.approx(0.1)
    else:
        assert said == "resnet10t takes no attn_drop_rate"
        assert made.module.drop_rate == 0.1


@pytest.mark.parametrize("name", ["vit", "timm:vit_tiny_patch16_224", "torchvision:resnet18"])
@pytest.mark.parametrize("size", [(32, 64), (64, 16)])
def test_images_that_are_not_square(name: str, size: tuple[int, int], tmp_path: Path) -> None:
    made = new_model(arch(name, image_size=size), replace(PREPROCESS, size=size), 3)
    loaded = saved(made, tmp_path / "model.pt")
    images = torch.randn(2, 3, *size)
    assert torch.equal(loaded(images), made.module.eval()(images))
    again = model_from(str(tmp_path / "model.pt"), None, CONFIG, CLASSES, (32, 32))
    assert again.preprocess.size == (32, 32) and again.module.eval()(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    assert again.notes[1 if name.startswith("torchvision") else -1].endswith("to 32×32")
    if name.startswith("timm"):
        before, after = (module.pos_embed[0, 1:] for module in (loaded, again.module))
        grid = before.T.reshape(1, -1, size[0] // 16, size[1] // 16)
        resized = F.interpolate(grid, (2, 2), mode="bicubic", antialias=True)
        torch.testing.assert_close(after, resized[0].flatten(1).T)
    same = model_from(str(tmp_path / "model.pt"), None, CONFIG, CLASSES, None)
    assert same.preprocess.size == size and torch.equal(same.module.eval()(images), loaded(images))


@pytest.mark.parametrize("size", [(32, 64), (64, 16)])
def test_positions_keep_their_places_in_another_grid(size: tuple[int, int], tmp_path: Path) -> None:
    made = new_model(arch("vit", image_size=size), replace(PREPROCESS, size=size), 3)
    rows, columns = made.module.grid
    assert (rows, columns) == (size[0] // 4, size[1] // 4)
    made.module.positions.data[0, 1:, 0] = torch.linspace(0, 1, columns).repeat(rows)
    saved(made, tmp_path / "model.pt")
    again = model_from(str(tmp_path / "model.pt"), None, CONFIG, CLASSES, (32, 24)).module
    grid = again.positions[0, 1:, 0].unflatten(0, (8, 6))
    torch.testing.assert_close(grid[:, [0, -1]], torch.tensor([0.0, 1.0]).repeat(8, 1))
    assert torch.equal(again.positions[:, 0], made.module.positions[:, 0])


def test_models_of_square_images_say_so() -> None:
    with pytest.raises(UserError, match=r"vit_b_16 does not take images of 3×32×64 \(.*\): give its `image_size`"):
        new_model(arch("torchvision:vit_b_16", image_size=(32, 64)), replace(PREPROCESS, size=(32, 64)), 3)


@pytest.mark.filterwarnings("ignore:The default weight initialization of GoogleNet")
def test_auxiliary_classifiers_are_refused_before_a_training() -> None:
    """In eval mode this one answers with logits, in training with three of them."""
    with pytest.raises(UserError, match=r"googlenet does not return \(B, classes\) logits in training mode"):
        new_model(arch("torchvision:googlenet", image_size=32), replace(PREPROCESS, size=(32, 32)), 3)


def test_weights_of_the_same_classes_keep_their_classifier(tmp_path: Path) -> None:
    first = new_model(CONFIG, PREPROCESS, 3)
    saved(first, tmp_path / "model.pt")
    again = model_from(str(tmp_path / "model.pt"), None, CONFIG, CLASSES, None)
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(again.module.eval()(images), first.module.eval()(images))
    assert again.preprocess == PREPROCESS
    assert "is new" not in " ".join(again.notes)
    assert {part.p for part in again.module.modules() if isinstance(part, nn.Dropout)} == {0.1}


@pytest.mark.parametrize("classes", [("ant", "bee", "dog"), ("ant", "bee", "cat", "dog")])
def test_other_classes_get_a_new_classifier(classes: tuple[str, ...], tmp_path: Path) -> None:
    first = new_model(CONFIG, PREPROCESS, 3)
    saved(first, tmp_path / "model.pt")
    again = model_from(str(tmp_path / "model.pt"), None, CONFIG, classes, None)
    assert f"the classifier (head.weight, head.bias) is new, for {len(classes)} classes" in again.notes
    before, after = first.module.state_dict(), again.module.state_dict()
    assert {name for name in after if not torch.equal(before[name], after[name])} == {"head.weight", "head.bias"}


def test_bare_weights_of_timm_at_their_size_and_at_another(tmp_path: Path) -> None:
    name = "vit_tiny_patch16_224"
    weights = timm.create_model(name, img_size=32, num_classes=7).state_dict()
    torch.save(weights, tmp_path / "weights.pt")
    init = str(tmp_path / "weights.pt")
    own = model_from(init, f"timm:{name}", CONFIG, CLASSES, None)
    assert own.preprocess.size == (32, 32)
    found = own.module.state_dict()
    assert {key for key in found if not torch.equal(found[key], weights[key])} == {"head.weight", "head.bias"}
    other = model_from(init, f"timm:{name}", CONFIG, CLASSES, 48)
    assert other.preprocess == own.preprocess.at((48, 48))
    assert "positions are interpolated to 48×48" in other.notes
    assert_interpolated(weights["pos_embed"], other.module.state_dict()["pos_embed"], 9)
    loaded = saved(other, tmp_path / "model.pt")
    images = torch.randn(2, 3, 48, 48)
    assert torch.equal(loaded(images), other.module.eval()(images))


@pytest.mark.parametrize("size", [None, 64])
def test_bare_weights_of_torchvision(size: int | None, tmp_path: Path) -> None:
    weights = torchvision.models.resnet18(num_classes=7).state_dict()
    torch.save({"state_dict": weights}, tmp_path / "weights.pt")
    made = model_from(str(tmp_path / "weights.pt"), "torchvision:resnet18", CONFIG, CLASSES, size)
    found = made.module.state_dict()
    assert {key for key in found if not torch.equal(found[key], weights[key])} == {"fc.weight", "fc.bias"}
    assert saved(made, tmp_path / "model.pt")(torch.randn(2, 3, 64, 64)).shape == (2, 3)
    assert made.preprocess.size == ((224, 224) if size is None else (64, 64))
    assert ("images are resized to 64×64" in made.notes) == (size == 64)


def test_a_convolutional_checkpoint_of_timm_at_another_size(tmp_path: Path) -> None:
    made = new_model(arch("timm:resnet10t", image_size=32), replace(PREPROCESS, size=(32, 32)), 3)
    saved(made, tmp_path / "model.pt")
    other = model_from(str(tmp_path / "model.pt"), None, CONFIG, CLASSES, 48)
    assert other.preprocess.size == (48, 48)
    assert all(torch.equal(value, made.module.state_dict()[key]) for key, value in other.module.state_dict().items())


def test_a_checkpoint_at_another_size(tmp_path: Path) -> None:
    module = torchvision.models.VisionTransformer(**TINY, num_classes=3)
    factory = "torchvision.models:VisionTransformer"
    first = TrainModel(module, factory, TINY | {"num_classes": 3}, PREPROCESS)
    saved(first, tmp_path / "model.pt")
    for made, size in ((first, 24), (new_model(CONFIG, PREPROCESS, 3), 24)):
        saved(made, tmp_path / "model.pt")
        other = model_from(str(tmp_path / "model.pt"), None, CONFIG, CLASSES, size)
        key = "positions" if isinstance(made.module, ViT) else "encoder.pos_embedding"
        patches = 36 if isinstance(made.module, ViT) else 9
        assert_interpolated(made.module.state_dict()[key], other.module.state_dict()[key], patches)
        assert other.module.eval()(torch.randn(2, 3, size, size)).shape == (2, 3)


def assert_interpolated(old: torch.Tensor, new: torch.Tensor, patches: int) -> None:
    """The class token's position stays, and a corner's is near the old one's."""
    assert new.shape == (1, 1 + patches, old.shape[2])
    assert torch.equal(new[:, 0], old[:, 0])
    assert torch.nn.functional.cosine_similarity(new[0, 1], old[0, 1], dim=0) > 0.8


def test_what_does_not_fit_is_told(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    made = new_model(CONFIG, PREPROCESS, 3)
    saved(made, path)
    init = str(path)
    record = model_record(path)

    def refusal(init: str, arch: str | None = None, size: int | None = None) -> str:
        with pytest.raises(UserError) as caught:
            model_from(init, arch, CONFIG, CLASSES, size)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    assert "`init` none is not a file" in refusal("none")
    assert "names its own model, which `arch` timm" in refusal(init, "timm:vit_tiny_patch16_224")
    assert "ViT's image_size 18 is not a multiple" in refusal(init, None, 18)
    torch.save(record["state_dict"], tmp_path / "bare.pt")
    assert "has only weights: name their model with `arch`" in refusal(str(tmp_path / "bare.pt"))
    assert "does not fit torchvision:resnet18" in refusal(str(tmp_path / "bare.pt"), "torchvision:resnet18")
    torch.save(record | {"format": "vitfx-artifact/1"}, path)
    assert "has the format 'vitfx-artifact/1'" in refusal(init)
    torch.save(record | {"kwargs": record["kwargs"] | {"width": 16}}, path)
    assert "tensors of" in refusal(init)
    broken = {name: value.clone() for name, value in record["state_dict"].items()}
    broken["positions"].fill_(torch.nan)
    torch.save(record | {"state_dict": broken}, path)
    assert "are NaN or infinite" in refusal(init)
    with pytest.raises(UserError, match=r"takes images of 3 channels, but images.mean has 1: give three values"):
        new_model(arch("torchvision:vit_b_16"), Preprocess((16, 16), mean=(0.5,), std=(0.5,)), 3)
    with pytest.raises(UserError, match="`arch` timm:vit_tinny cannot be made"):
        new_model(arch("timm:vit_tinny"), PREPROCESS, 3)
    with pytest.raises(UserError, match="`arch` keras:vit is not one of"):
        new_model(arch("keras:vit"), PREPROCESS, 3)


@pytest.mark.parametrize(
    "changes", [{"kwargs": [1]}, {"factory": 3}, {"state_dict": 5}, {"preprocess": {"size": 8}}, {"classes": 7}]
)
def test_a_damaged_checkpoint_is_refused_in_a_sentence(tmp_path: Path, changes: dict[str, object]) -> None:
    demo = Path(str(resources.files("vitfx.models") / "demo" / "digits.pt"))
    torch.save(model_record(demo) | changes, tmp_path / "a.pt")
    with pytest.raises(UserError):
        model_from(str(tmp_path / "a.pt"), None, CONFIG, list("0123456789"), None)

"""vitfx.models.vit: shapes, arguments, and that torch.export takes it with a dynamic batch."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch.export import Dim, export

from vitfx.models.vit import ViT
from vitfx.support.errors import UserError

SMALL = {"image_size": 16, "patch_size": 4, "channels": 3, "classes": 7}
SMALL |= {"width": 32, "depth": 3, "heads": 4, "mlp": 48}


def test_the_default_is_the_seed_projects_architecture() -> None:
    model = ViT()
    assert model.positions.shape == (1, 65, 256)
    assert len(model.blocks) == 12
    assert model.blocks[0].attention.heads == 8
    assert model.blocks[0].mlp[0].weight.shape == (512, 256)
    assert model.head.weight.shape == (200, 256)


def test_logits_have_a_row_for_each_image() -> None:
    assert ViT(**SMALL)(torch.randn(5, 3, 16, 16)).shape == (5, 7)


@pytest.mark.parametrize("size", [(8, 16), [16, 12], (4, 4)])
def test_images_need_not_be_square(size: Sequence[int]) -> None:
    model = ViT(**{**SMALL, "image_size": size})
    assert model.positions.shape == (1, 1 + size[0] * size[1] // 16, 32)
    assert model(torch.randn(5, 3, *size)).shape == (5, 7)


def test_every_parameter_takes_a_gradient() -> None:
    model = ViT(**SMALL)
    model(torch.randn(4, 3, 16, 16)).square().mean().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_positions_tell_the_patches_apart() -> None:
    model = ViT(**SMALL).eval()
    images = torch.randn(2, 3, 16, 16)
    assert not torch.allclose(model(images), model(images.flip(-1)))


def test_attention_is_the_textbook_one() -> None:
    """softmax(q kᵀ / √d) v with heads as consecutive channels (Vaswani et al. 2017, equation 1)."""
    attention = ViT(**SMALL).double().eval().blocks[0].attention
    x = torch.randn(2, 5, 32, dtype=torch.float64)
    q, k, v = (part.view(2, 5, 4, 8).transpose(1, 2) for part in attention.qkv(x).chunk(3, dim=-1))
    mixed = (q @ k.mT / 8**0.5).softmax(-1) @ v
    torch.testing.assert_close(attention(x), attention.out(mixed.transpose(1, 2).reshape(2, 5, 32)))


def test_dropout_and_drop_path_act_in_training_alone() -> None:
    images = torch.randn(4, 3, 16, 16)
    model = ViT(**SMALL, dropout=0.2, drop_path=0.5)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))
    assert [block.drop_path.p for block in model.blocks] == [0.0, 0.25, 0.5]


def test_torch_export_keeps_the_batch_dynamic() -> None:
    model = ViT(**SMALL).eval()
    batch = Dim("batch", min=1, max=4096)
    program = export(model, (torch.randn(2, 3, 16, 16),), dynamic_shapes=({0: batch},), strict=False)
    exported = program.module(check_guards=False)
    for count in (1, 3, 8):
        images = torch.randn(count, 3, 16, 16)
        assert torch.equal(exported(images), model(images))
    targets = {str(node.target) for node in exported.graph.nodes}
    kept = ("scaled_dot_product_attention", "gelu", "layer_norm", "linear")
    assert {f"aten.{name}.default" for name in kept} <= targets


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"patch_size": 5}, "ViT's image_size 16 is not a multiple of its patch_size 5"),
        ({"heads": 5}, "ViT's width 32 is not a multiple of its heads 5"),
        ({"depth": 0}, "ViT's depth is 0: give a whole number of 1 or more"),
        ({"mlp": 2.5}, "ViT's mlp is 2.5"),
        ({"classes": True}, "ViT's classes is True"),
        ({"dropout": 1.0}, "ViT's dropout is 1.0"),
        ({"drop_path": float("nan")}, "ViT's drop_path is nan"),
    ],
)
def test_arguments_that_make_no_model_are_refused(arguments: dict[str, float], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        ViT(**(SMALL | arguments))

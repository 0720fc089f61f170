"""vitfx.models.image_size: what positions show of height and width, what they don't, and what is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.layers.pos_embed_sincos import build_sincos2d_pos_embed

from tests.models.test_checkpoint_errors import refused
from tests.models.test_state_dicts import ARCH, vit
from vitfx.models.architectures import arch_sizes
from vitfx.models.checkpoint import LoadedModel, load_model
from vitfx.models.image_size import grid_of
from vitfx.support.errors import UserError

GRIDS = [(14, 14), (8, 8), (4, 4), (4, 16), (16, 4), (7, 28), (28, 7), (9, 16), (16, 9), (12, 48), (5, 10), (37, 37)]


def saved(folder: Path, model: torch.nn.Module) -> str:
    torch.save(model.state_dict(), folder / "weights.pt")
    return str(folder / "weights.pt")


def same(loaded: LoadedModel, model: torch.nn.Module) -> bool:
    images = torch.randn(2, loaded.preprocess.channels, *loaded.preprocess.size)
    return torch.equal(loaded.module(images), model.eval()(images))


@pytest.mark.parametrize("grid", GRIDS)
def test_a_table_of_positions_shows_its_grid(grid: tuple[int, int]) -> None:
    table = build_sincos2d_pos_embed(list(grid), dim=64)
    torch.manual_seed(0)
    assert grid_of(table) == grid
    assert grid_of(table + 0.2 * torch.randn_like(table)) == grid
    assert grid_of(torch.randn_like(table)) is None
    assert grid_of(torch.zeros_like(table)) is None


@pytest.mark.parametrize("grid", [(8, 8), (4, 16), (16, 4), (5, 7)])
def test_the_size_is_read_from_trained_positions(tmp_path: Path, grid: tuple[int, int]) -> None:
    height, width = 16 * grid[0], 16 * grid[1]
    model = vit(img_size=(height, width))
    model.pos_embed.data[0, 1:] = build_sincos2d_pos_embed(list(grid), dim=model.embed_dim)
    loaded = load_model(saved(tmp_path, model), arch=ARCH)
    assert loaded.preprocess.size == (height, width)
    assert f"images of {height}×{width} pixels, as the positions in" in (loaded.image_size.note or "")
    assert loaded.image_size.question is None
    assert same(loaded, model)


@pytest.mark.parametrize("size", [(32, 64), (48, 16), (16, 112)])
def test_other_numbers_of_patches_are_asked_for(tmp_path: Path, size: tuple[int, int]) -> None:
    model = vit(img_size=size)
    path = saved(tmp_path, model)
    patches = size[0] * size[1] // 256
    said = refused(Path(path), arch=ARCH)
    assert f"has positions for {patches} patches of 16×16 pixels, which can be several heights and widths" in said
    assert "give `image_size` HEIGHTxWIDTH" in said
    loaded = load_model(path, arch=f"{ARCH},img_size={size[0]}x{size[1]}")
    assert loaded.preprocess.size == size
    assert same(loaded, model)


@pytest.mark.parametrize("size", [(32, 32), (16, 64), (64, 16)])
def test_a_square_number_of_patches_is_a_question(tmp_path: Path, size: tuple[int, int]) -> None:
    loaded = load_model(saved(tmp_path, vit(img_size=size)), arch=ARCH)
    assert "images of 32×32 pixels, if the 4 patches in" in (loaded.image_size.note or "")
    question = loaded.image_size.question or ""
    assert "which are images of 32×32 or of another height and width: give `image_size` 32x32 or what" in question


def test_the_architectures_own_size_needs_no_question(tmp_path: Path) -> None:
    loaded = load_model(saved(tmp_path, vit(img_size=160)), arch=ARCH)
    assert (loaded.preprocess.size, loaded.image_size.note, loaded.image_size.question) == ((160, 160), None, None)


def test_a_size_that_does_not_fit(tmp_path: Path) -> None:
    said = refused(Path(saved(tmp_path, vit(img_size=32))), arch=f"{ARCH},img_size=64")
    assert (
        "has positions for 4 patches of 16×16 pixels, and images of 64×64 have 16: give the `image_size` that" in said
    )


def test_torchvision_takes_square_images(tmp_path: Path) -> None:
    model = torchvision.models.vision_transformer.VisionTransformer(64, 32, 1, 2, 8, 8, num_classes=3)
    model.encoder.pos_embedding.data = torch.zeros(1, 9, 8)
    said = refused(Path(saved(tmp_path, model)), arch="torchvision:vit_b_32")
    assert "has positions for 8 patches of 32×32 pixels, and its model takes square images" in said


@pytest.mark.parametrize("size", [(32, 128), (64, 32)])
def test_torchvision_needs_no_question(size: tuple[int, int]) -> None:
    """The number of positions says the size, and other shapes are refused, of as many patches, too."""
    weights = {"conv_proj.weight": torch.zeros(8, 3, 32, 32), "encoder.pos_embedding": torch.zeros(1, 5, 8)}
    _, known = arch_sizes("torchvision:vit_b_32", weights, "weights.pt")
    assert (known.size, known.question) == ((64, 64), None)
    assert known.note == "images of 64×64 pixels, as weights.pt has positions for 4 patches"
    with pytest.raises(UserError, match=f"square images, not {size[0]}×{size[1]}: give one side"):
        arch_sizes("torchvision:vit_b_32", weights, "weights.pt", size)


REGISTERS: dict[str, dict[str, Any]] = {
    "test_vit": {"reg_tokens": 2},
    "vit_little_patch16_reg4_gap_256": {"reg_tokens": 4, "depth": 1},
    "deit_tiny_distilled_patch16_224": {"depth": 1},
}


@pytest.mark.parametrize("name", REGISTERS)
def test_registers_and_classes_come_from_the_weights(tmp_path: Path, name: str) -> None:
    given = REGISTERS[name]
    model = timm.create_model(name, num_classes=3, **given)
    depth = f",depth={given['depth']}" if "depth" in given else ""
    loaded = load_model(saved(tmp_path, model), arch=f"timm:{name}{depth}")
    assert same(loaded, model)
    assert ("model: reg_tokens=2, as the weights have them" in (loaded.weights_note or "")) == (name == "test_vit")

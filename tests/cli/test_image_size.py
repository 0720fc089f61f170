"""--image-size: height and width may differ, through whole commands; what positions leave open is asked for."""

from __future__ import annotations

from argparse import ArgumentTypeError, Namespace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from tests.models.test_image_size import ARCH, saved, vit
from vitfx import discover, optimize, prune
from vitfx.cli.options import OF_IMAGES, image_size
from vitfx.deploy.runtime import open_session
from vitfx.models.checkpoint import load_model
from vitfx.runs.inputs import Inputs, open_inputs
from vitfx.support.errors import UserError


def images(folder: Path, height: int, width: int, *more: tuple[int, int]) -> str:
    from PIL import Image

    for label in range(5):
        (folder / str(label)).mkdir(parents=True)
        for copy, (high, wide) in enumerate([(height, width)] * 4 + list(more)):
            pixels = np.random.default_rng(copy).integers(0, 256, (high, wide, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(folder / str(label) / f"{copy}.png")
    return str(folder)


@pytest.mark.parametrize(
    ("text", "size"), [("224", (224, 224)), ("256x128", (256, 128)), ("7X9", (7, 9)), ("8×4", (8, 4))]
)
def test_sizes(text: str, size: tuple[int, int]) -> None:
    assert image_size(text) == size


@pytest.mark.parametrize("text", ["", "0", "0x8", "x8", "8x", "8x8x8", "-8", "8.5", "eight", "٣"])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(ArgumentTypeError, match="is no size: give a side, or height and width as 256x128"):
        image_size(text)


def opened(path: str, data: str, **options: object) -> Inputs:
    known = {
        "arch": ARCH,
        "weights": None,
        "output": None,
        "trust_pickle": False,
        "class_names": None,
        **dict.fromkeys(OF_IMAGES),
    }
    return open_inputs(Namespace(model=path, data=data, **known | options))


def test_square_images_answer_the_question(tmp_path: Path) -> None:
    path = saved(tmp_path, vit(img_size=32))
    inputs = opened(path, images(tmp_path / "square", 32, 32))
    assert inputs.model.preprocess.size == (32, 32)
    assert any("images of 32×32 pixels, if the 4 patches in" in line for line in inputs.first_lines)


@pytest.mark.parametrize(("height", "width", "more"), [(16, 64, ()), (64, 16, ()), (32, 32, ((24, 32),))])
def test_other_images_leave_it_open(tmp_path: Path, height: int, width: int, more: tuple[tuple[int, int], ...]) -> None:
    path, data = saved(tmp_path, vit(img_size=(height, width))), images(tmp_path / "images", height, width, *more)
    with pytest.raises(UserError, match="has positions for 4 patches of 16×16 pixels, which are images of 32×32 or of"):
        opened(path, data)
    assert opened(path, data, image_size=(height, width)).model.preprocess.size == (height, width)
    with pytest.raises(UserError, match="and images of 48×48 have 9: give the `image_size` that it was trained at"):
        opened(path, data, image_size=(48, 48))


@pytest.mark.parametrize(("size", "patch"), [((24, 16), 8), pytest.param((32, 48), 16, marks=pytest.mark.slow)])
def test_prune_with_images_that_are_not_square(tmp_path: Path, size: tuple[int, int], patch: int) -> None:
    arch = f"{ARCH},patch_size={patch},depth=2"
    model = vit(img_size=size, patch_size=patch, depth=2)
    path, data = saved(tmp_path, model), images(tmp_path / "images", *size)
    given = [path, "--arch", arch, "--data", data, "--image-size", f"{size[0]}x{size[1]}"]
    out = tmp_path / "out"
    assert prune.main([*given, "--samples", "8", "--tau", "1e-9", "--compensate", "mean", "--out", str(out)]) == 0
    pruned = load_model(str(out / "pruned.pt"))
    assert pruned.preprocess.size == size
    pixels = torch.randn(3, 3, *size)
    answer = open_session(out / "pruned.onnx", torch.device("cpu")).run(pixels)
    torch.testing.assert_close(answer, pruned.module(pixels), rtol=1e-4, atol=1e-4)
    dims = onnx.load(out / "baseline.onnx").graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value for dim in dims][2:] == list(size)


@pytest.mark.slow
def test_discover_and_optimize_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, data = saved(tmp_path, vit(img_size=(16, 48))), images(tmp_path / "images", 16, 48)
    given = [path, "--arch", ARCH, "--data", data, "--image-size", "16x48"]
    ranking = ["--method", "magnitude", "--granularity", "block", "--remove", "0.2", "--samples", "4"]
    assert discover.main([*given, *ranking, "--out", str(tmp_path / "circuit.json")]) == 0
    assert "--image-size 16x48" in capsys.readouterr().out
    assert optimize.main([*given, "--portable", "--quick", "--out", str(tmp_path / "fast")]) == 0

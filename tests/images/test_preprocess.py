"""Pictures become inputs; what makes no picture is refused."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

from vitfx.images.geometry import Resize
from vitfx.images.preprocess import Preprocess
from vitfx.support.errors import UserError


def test_values_are_scaled_then_normalised() -> None:
    image = torch.tensor([[[0, 255], [51, 102]]], dtype=torch.uint8)
    got = Preprocess((2, 2), mean=(0.2,), std=(0.5,))(image)
    assert torch.allclose(got, (torch.tensor([[[0.0, 1.0], [0.2, 0.4]]]) - 0.2) / 0.5, atol=1e-6)
    grey = Preprocess((2, 2))(image)
    assert grey.shape == (3, 2, 2)
    assert Preprocess((4, 6), mean=(0.2,), std=(0.5,))(image[None]).shape == (1, 1, 4, 6)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"size": (0, 8)}, r"the image size is \(0, 8\): give \(height, width\), 1 pixel or more each"),
        ({"size": (8, 8, 8)}, "the image size is"),
        ({"mean": (0.5,)}, "mean has 1 values and std has 3: give one of each for every channel"),
        ({"mean": (), "std": ()}, "mean has 0 values"),
        ({"mean": (math.nan,), "std": (1.0,)}, r"mean is \(nan,\) and std is \(1.0,\): give finite numbers, std above"),
        ({"mean": (0.0,), "std": (0.0,)}, "std above 0"),
        ({"mean": (0.0,), "std": (math.inf,)}, "give finite numbers"),
        ({"interpolation": "magic"}, "interpolation 'magic' is not one of"),
    ],
)
def test_what_makes_no_picture_is_refused(given: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Preprocess(**{"size": (8, 8)} | given)


def test_json_and_back() -> None:
    one = Preprocess((8, 9), "bilinear", False, (0.1,), (0.2,))
    assert (
        Preprocess.from_json({key: list(v) if isinstance(v, tuple) else v for key, v in one.to_json().items()}) == one
    )
    with pytest.raises(UserError, match="preprocess has the unknown keys crop"):
        Preprocess.from_json({"size": [8, 8], "crop": 4})
    with pytest.raises(UserError, match="preprocess does not say the size"):
        Preprocess.from_json({})


def test_old_files_keep_their_form_and_meaning() -> None:
    plain = Preprocess((8, 9), "bilinear", False, (0.1,), (0.2,))
    assert json.dumps(plain.to_json()) == (
        '{"size": [8, 9], "interpolation": "bilinear", "antialias": false, "mean": [0.1], "std": [0.2]}'
    )
    image = torch.randint(0, 256, (3, 20, 31), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    resized = F.resize(image, [16, 24], interpolation=InterpolationMode.BICUBIC, antialias=True)
    expected = F.normalize(F.to_dtype(resized, torch.float32, scale=True), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert torch.equal(Preprocess((16, 24))(image), expected)


STEPS = Preprocess(
    (8, 9), mean=(0.1,) * 3, std=(0.2,) * 3, resize=Resize((10, 12), "longest", 0.8), corner="down", fill=(1, 2, 3),
    resampler="PIL", reader="PIL-upright", bgr=True, origin="a file",
)  # fmt: skip


def test_every_step_survives_json() -> None:
    assert Preprocess.from_json(json.loads(json.dumps(STEPS.to_json()))) == STEPS
    assert "origin" not in STEPS.to_json()
    assert str(STEPS) == (
        "resized to 10×12 on the longest edge (bicubic, PIL), cropped to the central 8×9, channels blue, green, red; "
        "mean 0.1, std 0.2"
    )
    assert str(Preprocess((8, 8))) == "resized to 8×8 (bicubic); mean 0.485 0.456 0.406, std 0.229 0.224 0.225"


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"resize": 5}, "resize is 5: give an object"),
        ({"resize": {"edge": "both"}}, "resize does not say the to"),
        ({"resize": {"to": [8, 8], "edge": "left"}}, "resize has the edge 'left'"),
        ({"resize": {"to": [8, -8]}}, r"images are resized to \(8, -8\)"),
        ({"resize": {"to": [8, 10**6]}}, "images are resized to"),
        ({"resize": {"to": 8}}, "images are resized to 8"),
        ({"resize": {"to": [8, 8], "crop_pct": "all"}}, "crop_pct is all"),
        ({"corner": "up"}, "corner 'up' is not one of nearest, down"),
        ({"fill": [1]}, r"fill is \(1,\)"),
        ({"resampler": "cv2"}, "resampler 'cv2'"),
        ({"reader": ["PIL"]}, "reader"),
        ({"bgr": 1}, "bgr is 1: give true or false"),
        ({"resampler": "torch", "interpolation": "hamming"}, "torch does not resize by hamming"),
        ({"origin": "x"}, "unknown keys origin"),
    ],
)
def test_damaged_steps_are_refused(change: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Preprocess.from_json(STEPS.to_json() | change)


def test_channels_are_reversed_before_mean_and_std() -> None:
    image = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1)
    got = Preprocess((1, 1), mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0), bgr=True)(image)
    torch.testing.assert_close(got.flatten(), torch.tensor([0.9, 0.0, -0.3]))


@pytest.mark.parametrize("resampler", ["torch", "torch-float", "PIL"])
def test_the_border_has_the_colour_asked_for(resampler: str) -> None:
    image = torch.full((2, 3, 4, 2), 255, dtype=torch.uint8)
    recipe = Preprocess((4, 5), resize=Resize((4, 4), "none"), fill=(51, 102, 153), resampler=resampler).plain()
    got = recipe(image)
    assert got.shape == (2, 3, 4, 5)
    torch.testing.assert_close(
        got[1, :, 2], torch.tensor([[0.2, 1, 1, 0.2, 0.2], [0.4, 1, 1, 0.4, 0.4], [0.6, 1, 1, 0.6, 0.6]])
    )

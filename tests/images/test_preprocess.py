"""Pictures become inputs; what makes no picture is refused."""

from __future__ import annotations

import math

import pytest
import torch

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

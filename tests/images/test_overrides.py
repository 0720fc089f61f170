"""A given value changes that one thing."""

from __future__ import annotations

import pytest

from vitfx.images.geometry import Resize
from vitfx.images.overrides import Overrides
from vitfx.images.preprocess import ASSUMED, Preprocess
from vitfx.support.errors import UserError

TIMM = Preprocess(
    (224, 224), mean=(0.5,) * 3, std=(0.5,) * 3, resize=Resize((248, 248), "shortest", 0.9), origin="timm's"
)
TORCHVISION = Preprocess((224, 224), "bilinear", resize=Resize((256, 256)), resampler="PIL", reader="PIL")
SQUASHED = Preprocess((32, 32))


def differing(one: Preprocess, two: Preprocess) -> set[str]:
    fields = Preprocess.__dataclass_fields__
    return {name for name in fields if name != "origin" and getattr(one, name) != getattr(two, name)}


@pytest.mark.parametrize("base", [TIMM, TORCHVISION, SQUASHED])
def test_one_thing_and_nothing_else(base: Preprocess) -> None:
    assert Overrides().applied(base) is base
    changed = {
        "mean": Overrides(mean=(0.1, 0.2, 0.3)),
        "std": Overrides(std=(0.1, 0.2, 0.3)),
        "interpolation": Overrides(interpolation="nearest"),
        "resize": Overrides(resize=300),
    }
    for name, overrides in changed.items():
        assert differing(overrides.applied(base), base) == {name}
    assert differing(Overrides(crop_pct=0.5).applied(base), base) == {"resize"}


def test_the_resize_follows_the_size() -> None:
    assert Overrides(size=(384, 384)).applied(TIMM).resize == Resize((426, 426), "shortest", 0.9)
    assert Overrides(size=(384, 384)).applied(TORCHVISION).resize == Resize((439, 439))
    assert Overrides(size=(112, 224)).applied(TORCHVISION).resize == Resize((128, 256))
    assert Overrides(size=(384, 384), resize=384).applied(TIMM).resize == Resize((384, 384))
    assert Overrides(size=(64, 48)).applied(SQUASHED) == Preprocess((64, 48))
    assert Overrides(size=(64, 48)).applied(None) == Preprocess((64, 48))
    assert Overrides(mean=(0.5,)).applied(None) is None


def test_the_origin_says_what_was_given() -> None:
    assert Overrides(size=(8, 8), std=(0.5,) * 3).applied(TIMM).origin == "timm's; size and std as given"
    assert Overrides(size=(8, 8)).applied(None).origin == f"{ASSUMED}; size as given"


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"resize": 8, "crop_pct": 0.5}, "say the same: give one"),
        ({"crop_pct": 0.0}, "crop_pct is 0: give a share above 0, up to 1"),
        ({"crop_pct": 87.5}, "crop_pct is 87.5"),
        ({"resize": 0}, r"images are resized to \(0, 0\)"),
        ({"mean": (0.5,)}, "mean has 1 values and std has 3"),
        ({"interpolation": "cubic"}, "interpolation 'cubic' is not one of"),
    ],
)
def test_what_makes_no_picture_is_refused(given: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        Overrides(**given).applied(TIMM)

"""Whatever is done with a model that was given, every submodule keeps its mode."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

import vitfx
from tests.support.families import images, make
from vitfx.graph.trace import to_canonical
from vitfx.images.pixel_cache import Pixels
from vitfx.images.preprocess import Preprocess
from vitfx.support.modes import evaluating
from vitfx.support.processes import Alone
from vitfx.training.confusion import confuse
from vitfx.training.precision import pick_precision

SIZE = images(1).shape[2:]
UNCHANGED = Preprocess((SIZE[0], SIZE[1]))


class Stop(Exception):
    pass


def partly_frozen(model: nn.Module) -> dict[str, bool]:
    """Puts every other submodule in training mode; the modes by name."""
    for index, part in enumerate(model.modules()):
        part.training = index % 2 == 0
    return modes(model)


def modes(model: nn.Module) -> dict[str, bool]:
    return {name: part.training for name, part in model.named_modules()}


def confused(model: nn.Module, goes_on: Callable[[int, int], bool]) -> object:
    shape = (4, *images(1).shape[1:])
    pixels = Pixels(shape, torch.arange(4), 0, "print", torch.zeros(shape, dtype=torch.uint8), None)
    return confuse(model, pixels, UNCHANGED, 10, batch=2, precision="fp32", share=Alone(), goes_on=goes_on)


def stop(done: int, total: int) -> bool:
    raise Stop


USES: dict[str, Callable[[nn.Module], object]] = {
    "confuse": lambda model: confused(model, lambda done, total: True),
    "confuse, given up": lambda model: confused(model, lambda done, total: False),
    "confuse, failed": lambda model: confused(model, stop),
    "to_canonical": lambda model: to_canonical(model, images(2)),
    "pick_precision": lambda model: pick_precision("auto", model, images(2)),
    "prune": lambda model: vitfx.prune(model, images(4), tau=0.0, corruption="noise", paths=2),
}


@pytest.mark.parametrize("use", USES)
def test_a_model_that_is_lent_keeps_its_modes(use: str) -> None:
    model = make("timm")
    before = partly_frozen(model)
    try:
        USES[use](model)
    except Stop:
        assert use == "confuse, failed"
    assert modes(model) == before


def test_all_is_in_eval_mode_meanwhile() -> None:
    model = make("timm")
    before = partly_frozen(model)
    with evaluating(model):
        assert not any(modes(model).values())
    assert modes(model) == before

"""What the decisions of a discovery depend on: nothing else goes on from its journal."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

from tests.support.checks import traced
from tests.support.families import images
from vitfx.discovery.basis.settings import Settings
from vitfx.discovery.run import journal_key, origins
from vitfx.images.image_set import Images

SETTINGS = Settings(tau=0.02, seed=3)
IMAGES = Images(images(3), torch.tensor([0, 1, 0]), ("a", "b", "c"))
CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "change",
    [
        {"labels": torch.tensor([0, 1, 1])},
        {"labels": None},
        {"pixels": images(4)[1:]},
        {"pixels": images(3).mul(1 + 1e-6)},
    ],
    ids=["labels", "no labels", "images", "a little"],
)
def test_images_and_labels_are_origins(change: dict[str, Any]) -> None:
    graph_module = traced("vitfx").graph_module
    before, after = (origins(graph_module, each) for each in (IMAGES, dataclasses.replace(IMAGES, **change)))
    assert before == origins(traced("vitfx").graph_module, IMAGES)
    assert {name for name in before if before[name] != after[name]} == {"images"}


def test_weights_are_origins() -> None:
    graph_module = traced("vitfx").graph_module
    before = origins(graph_module, IMAGES)
    with torch.no_grad():
        graph_module.a1.q.weight[3, 2] += 1e-6
    after = origins(graph_module, IMAGES)
    assert {name for name in before if before[name] != after[name]} == {"model"}


def test_a_journal_is_of_one_key() -> None:
    facts = {"model": "m", "images": "i"}
    others = [
        (dataclasses.replace(SETTINGS, tau=0.03), facts, CPU),
        (dataclasses.replace(SETTINGS, seed=4), facts, CPU),
        (SETTINGS, facts | {"model": "n"}, CPU),
        (SETTINGS, facts | {"images": "j"}, CPU),
        (SETTINGS, facts, torch.device("meta")),
    ]
    keys = [journal_key(SETTINGS, facts, CPU), *(journal_key(*other) for other in others)]
    assert len(set(keys)) == len(keys)
    assert journal_key(Settings(seed=3, tau=0.02), dict(reversed(facts.items())), CPU) == keys[0]

"""vitfx.recovery.trainable: which parameters each choice stands for, and that nothing else changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from passes.stream import read_sites
from tests.support.recover_runs import run, student, teacher
from vitfx.recovery.trainable import ONLY, LowRank, choose, neighbours, prepare
from vitfx.support.errors import UserError

HEAD_GONE: dict[str, Any] = {"a1": (0,)}
SUBLAYER_GONE: dict[str, Any] = {"m0": tuple(range(16))}


def test_neighbours_of_a_head_are_its_sublayer_and_those_beside_it() -> None:
    assert neighbours(student(HEAD_GONE), teacher()) == {"m0", "a1", "m1"}


def test_neighbours_of_a_whole_sublayer_are_the_survivors_beside_it() -> None:
    assert neighbours(student(SUBLAYER_GONE), teacher()) == {"a0", "a1"}
    gone = SUBLAYER_GONE | {"a1": (0, 1)}
    assert neighbours(student(gone), teacher()) == {"a0", "m1"}


def test_names_of_each_choice() -> None:
    pruned = student(SUBLAYER_GONE)
    norms = {site.name: str(site.norm.target) for site in read_sites(pruned)}
    names = {name for name, _ in pruned.named_parameters()}
    found = {only: choose(pruned, teacher(), only) for only in ONLY}
    assert found["all"] == names
    assert found["lora"] == set()
    assert found["compensating"] == {f"{one}.out.{part}" for one in ("a0", "a1", "m1") for part in ("weight", "bias")}
    near = ("a0.", "a1.", f"{norms['a0']}.", f"{norms['a1']}.")
    assert found["neighbours"] == {name for name in names if name.startswith(near)}
    assert {"a0.q.bias", "m1.out.bias", f"{norms['m1']}.weight"} <= found["norms-and-biases"]
    assert not any(name.endswith(("q.weight", "fc1.weight", "out.weight")) for name in found["norms-and-biases"])


@pytest.mark.parametrize("only", ONLY)
def test_gradients_reach_what_is_said_alone(only: str) -> None:
    pruned = student()
    count = prepare(pruned, teacher(), only, rank=2, seed=0)
    chosen = choose(student(), teacher(), only)
    adapters = {name for name, _ in pruned.named_parameters() if name.endswith((".up", ".down"))}
    wanted = chosen | adapters
    assert {name for name, value in pruned.named_parameters() if value.requires_grad} == wanted
    assert count == sum(value.numel() for name, value in pruned.named_parameters() if name in wanted) > 0
    assert (only == "lora") == any(isinstance(part, LowRank) for part in pruned.modules())


@pytest.mark.parametrize("only", ONLY)
def test_retraining_changes_what_is_said_alone(only: str, tmp_path: Path) -> None:
    before, found = student(), run(tmp_path, only=only, lr=1e-2)
    assert found.best > 0
    after = found.module.state_dict()
    changed = {name for name, value in before.state_dict().items() if not torch.equal(value, after[name])}
    weights = {f"{site.name}.{part}.weight" for site in read_sites(before) for part in ("q", "k", "v", "out", "fc1")}
    expected = choose(before, teacher(), only) if only != "lora" else weights & set(after)
    # A key's bias shifts all of a query's weights alike: softmax does not see it.
    assert changed <= expected
    assert {name for name in expected if not name.endswith("k.bias")} <= changed
    assert after.keys() == before.state_dict().keys()


def test_another_models_artifact_is_refused() -> None:
    with pytest.raises(UserError, match="has 2 units in a0 and the teacher 1: give the model"):
        neighbours(teacher(), student())


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(UserError, match="`only` neighbours leaves nothing to train"):
        choose(teacher(), teacher(), "neighbours")

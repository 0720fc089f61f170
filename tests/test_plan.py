import json

import pytest
import torch

from passes.base import PassError
from passes.plan import DeletionPlan, SublayerDeletion, channels_of
from tests.checks import canonical, plan_of


def test_json_brings_back_the_plan_to_the_bit():
    plan = plan_of(canonical(), {"a0": [1], "m1": range(48), "m2": [0, 7]}, "position")
    again = DeletionPlan.from_json(plan.to_json())
    assert again.to_json() == plan.to_json()
    for one, other in zip(plan.deletions, again.deletions, strict=True):
        assert (one.name, one.kind, one.units, one.total) == (other.name, other.kind, other.units, other.total)
        assert torch.equal(one.constant, other.constant)


def test_it_prints_what_goes():
    plan = plan_of(canonical(), {"a0": [1, 2], "a1": range(4), "m1": range(48), "m2": [0, 7]}, "none")
    assert str(plan).splitlines() == [
        "a0: 2 of 4 heads (1, 2)",
        "a1: all of 4 heads",
        "m1: all of 48 neurons",
        "m2: 2 of 48 neurons",
    ]
    assert str(DeletionPlan()) == "nothing is deleted"


@pytest.mark.parametrize(
    ("units", "total", "reason"),
    [
        ((), 4, "at least one"),
        ((2, 1), 4, "ascending"),
        ((1, 1), 4, "each once"),
        ((4,), 4, "0 to 3"),
        ((-1, 2), 4, "0 to 3"),
    ],
)
def test_units_are_checked(units, total, reason):
    with pytest.raises(PassError, match=reason):
        SublayerDeletion("a0", "head", units, total)


def test_a_sublayer_is_named_once():
    one = SublayerDeletion("a0", "head", (0,), 4)
    with pytest.raises(PassError, match="once"):
        DeletionPlan((one, one))


@pytest.mark.parametrize(
    ("deletion", "reason"),
    [
        (SublayerDeletion("a7", "head", (0,), 4), "which the graph does not have"),
        (SublayerDeletion("a0", "head", (0,), 5), "takes a0 for 5 heads, the graph has 4 heads there"),
        (SublayerDeletion("m0", "head", (0,), 48), "takes m0 for 48 heads, the graph has 48 neurons"),
    ],
)
def test_a_plan_is_checked_against_the_graph(deletion, reason):
    with pytest.raises(PassError, match=reason):
        DeletionPlan((deletion,)).check(canonical())


def test_another_format_is_refused():
    with pytest.raises(PassError, match="'other' is not vitfx-plan/1"):
        DeletionPlan.from_json(json.dumps({"format": "other"}))


def test_channels_of_units():
    assert channels_of([2, 0], 3).tolist() == [6, 7, 8, 0, 1, 2]
    assert channels_of([], 3).tolist() == []

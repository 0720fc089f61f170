import json
from dataclasses import replace

import pytest
import torch

from passes.base import PassError
from passes.plan import DeletionPlan, Refit, SublayerDeletion, channels_of
from tests.support.checks import canonical, plan_of


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
        ((), 4, "one or more"),
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
    with pytest.raises(PassError, match="once"):
        DeletionPlan((), (_refit(), _refit()))


@pytest.mark.parametrize(
    ("deletion", "reason"),
    [
        (SublayerDeletion("a7", "head", (0,), 4), "which the graph does not have"),
        (SublayerDeletion("a0", "head", (0,), 5), "has 5 heads in a0, the graph has 4 heads"),
        (SublayerDeletion("m0", "head", (0,), 48), "has 48 heads in m0, the graph has 48 neurons"),
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


def _refit(name="m2", channels=46, width=32):
    generator = torch.Generator().manual_seed(0)
    return Refit(name, torch.randn(width, channels, generator=generator), torch.randn(width, generator=generator))


def test_refits_come_back_with_their_tensors():
    graph_module = canonical()
    plan = replace(plan_of(graph_module, {"m1": [0], "m2": [0, 7]}), refits=(_refit(),))
    plan.check(graph_module)
    assert str(plan).splitlines()[-1] == "refitted: m2"
    again = DeletionPlan.from_json(plan.to_json(), plan.tensors())
    assert again.to_json() == plan.to_json()
    assert torch.equal(again.refits[0].weight, plan.refits[0].weight)
    assert torch.equal(again.refits[0].shift, plan.refits[0].shift)


def test_other_tensors_than_the_plans_are_refused():
    plan = DeletionPlan((), (_refit(),))
    with pytest.raises(PassError, match=r"tensor m2\.weight is missing"):
        DeletionPlan.from_json(plan.to_json())
    tensors = plan.tensors()
    tensors["m2.shift"] = tensors["m2.shift"] + 1
    with pytest.raises(PassError, match=r"tensor m2\.shift is not the plan's"):
        DeletionPlan.from_json(plan.to_json(), tensors)


@pytest.mark.parametrize(
    ("refit", "reason"),
    [
        (_refit("m7"), "refits the sublayer m7, which the graph does not have"),
        (_refit("m2", 48), r"refits m2 with a weight of \(32, 48\), but what it keeps there needs \(32, 46\)"),
        (_refit("m1", 1), r"what it keeps there needs \(32, 0\)"),
    ],
)
def test_refits_are_checked_against_the_graph(refit, reason):
    graph_module = canonical()
    plan = replace(plan_of(graph_module, {"m1": range(48), "m2": [0, 7]}), refits=(refit,))
    with pytest.raises(PassError, match=reason):
        plan.check(graph_module)


def test_a_refit_has_a_shift_of_its_width():
    with pytest.raises(PassError, match=r"a weight of \(4, 3\) and a shift of \(3,\)"):
        Refit("m0", torch.zeros(4, 3), torch.zeros(3))

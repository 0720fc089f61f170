import pytest
import torch

from passes.plan import FORMAT, DeletionPlan, Refit, SublayerDeletion
from tests.support.records import json_record
from vitfx.pruning.plan_file import PLAN_FILES, read_plan, write_plan
from vitfx.support.errors import UserError
from vitfx.support.json_files import write_json

PLAN = DeletionPlan(
    (SublayerDeletion("m0", "neuron", (0, 2), 5, torch.arange(4.0, dtype=torch.float64)),),
    (Refit("m0", torch.arange(12.0).reshape(4, 3), torch.full((4,), 0.1, dtype=torch.float64)),),
)

DELETION = {"name": "m0", "kind": "neuron", "units": [0], "total": 5, "constant": None}


@pytest.mark.parametrize("plan", [PLAN, DeletionPlan()], ids=["refits", "empty"])
def test_a_plan_comes_back(tmp_path, plan):
    write_plan(tmp_path, plan)
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted(PLAN_FILES)
    again = read_plan(tmp_path)
    assert again.to_json() == plan.to_json()
    assert all(torch.equal(value, again.tensors()[name]) for name, value in plan.tensors().items())


def test_the_tensors_of_another_run_are_refused(tmp_path):
    write_plan(tmp_path, PLAN)
    first = (tmp_path / "plan.json").read_text()
    write_plan(tmp_path, DeletionPlan((), (Refit("m0", torch.zeros(4, 3), torch.zeros(4)),)))
    (tmp_path / "plan.json").write_text(first)
    with pytest.raises(UserError, match=r"m0\.weight is not the plan's"):
        read_plan(tmp_path)


@pytest.mark.parametrize("name", PLAN_FILES)
def test_broken_and_missing_files(tmp_path, name):
    write_plan(tmp_path, PLAN)
    (tmp_path / name).write_bytes(b"{")
    with pytest.raises(UserError, match=r"can't be used|is not JSON"):
        read_plan(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=f"{name} can't be read"):
        read_plan(tmp_path)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"deletions": None}, "the plan.deletions is None, not a list"),
        ({"refits": [{"name": "m0"}]}, r"the plan.refits\[0\] has no tensors"),
        ({"refits": [{"name": "m0", "tensors": {}}]}, "the refit of m0 has the tensors"),
        ({"deletions": [{**DELETION, "units": [True]}]}, r"units\[0\] is True, not a whole number"),
        ({"deletions": [{**DELETION, "constant": {"shape": [3], "float64": ""}}]}, "has 0 bytes for the shape"),
        ({"deletions": [{**DELETION, "constant": {"shape": [-1, -1], "float64": "AAAAAAAAAAA="}}]}, "has 8 bytes for"),
        ({"deletions": [{**DELETION, "constant": {"shape": [1], "float64": "x"}}]}, "can't be used"),
    ],
)
def test_values_of_another_type(tmp_path, change, why):
    """With the right digest: nobody but whoever wrote it knows that they are wrong."""
    write_plan(tmp_path, PLAN)
    write_json(tmp_path / "plan.json", FORMAT, json_record(tmp_path / "plan.json") | change)
    with pytest.raises(UserError, match=why) as caught:
        read_plan(tmp_path)
    assert "\n" not in str(caught.value)

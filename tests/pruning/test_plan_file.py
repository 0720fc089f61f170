import pytest
import torch

from passes.plan import DeletionPlan, Refit, SublayerDeletion
from vitfx.pruning.plan_file import PLAN_FILES, read_plan, write_plan
from vitfx.support.errors import UserError

PLAN = DeletionPlan(
    (SublayerDeletion("m0", "neuron", (0, 2), 5, torch.arange(4.0, dtype=torch.float64)),),
    (Refit("m0", torch.arange(12.0).reshape(4, 3), torch.full((4,), 0.1, dtype=torch.float64)),),
)


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

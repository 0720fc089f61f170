"""What several plans delete, side by side, against counts by hand."""

from __future__ import annotations

from passes.plan import DeletionPlan, SublayerDeletion
from tests.support.pages import read
from vitfx.reports.deleted_beside import deleted_beside
from vitfx.reports.page import page


def _plan(*deletions: tuple[str, str, tuple[int, ...], int]) -> DeletionPlan:
    return DeletionPlan(tuple(SublayerDeletion(*each) for each in deletions))


TEN = _plan(("a0", "head", (0, 2), 6), ("a10", "head", (1,), 6), ("m0", "neuron", tuple(range(30)), 64))
ALL = _plan(("a0", "head", (2, 3), 6), ("m0", "neuron", tuple(range(20, 40)), 64))


def test_units_stand_beside_each_other_by_sublayer() -> None:
    shown = read(page("", "", [deleted_beside([("ten", TEN), ("all", ALL)], "Beside")]))
    assert shown.sections == ["Beside"]
    assert shown.cells == [
        ["", "ten", "all", "in all of them"],
        ["a0", "2 of 6 heads: 0, 2", "2 of 6 heads: 2, 3", "1 of 6 heads: 2"],
        ["m0", "30 of 64 neurons", "20 of 64 neurons: " + ", ".join(map(str, range(20, 40))), "10 of 64 neurons: "
         + ", ".join(map(str, range(20, 30)))],
        ["a10", "1 of 6 heads: 1", "–", "–"],
    ]  # fmt: skip
    caption = "of 4 heads that any run deletes, all delete 1, and of 40 neurons that any run deletes, all delete 10"
    assert caption in shown.told


def test_a_sublayer_without_units_is_not_a_list_of_them() -> None:
    gone, some = (_plan(("a0", "head", tuple(range(units)), 6)) for units in (6, 5))
    (_, row) = read(page("", "", [deleted_beside([("gone", gone), ("some", some)], "Beside")])).cells
    assert row == ["a0", "all of 6 heads", "5 of 6 heads: 0, 1, 2, 3, 4", "5 of 6 heads: 0, 1, 2, 3, 4"]


def test_one_plan_or_plans_of_several_models_have_nothing_beside() -> None:
    other = _plan(("a0", "head", (0,), 12))
    assert not deleted_beside([("ten", TEN)], "Beside")
    assert not deleted_beside([("ten", TEN), ("other", other)], "Beside")
    assert not deleted_beside([("none", DeletionPlan()), ("nothing", DeletionPlan())], "Beside")

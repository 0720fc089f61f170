"""What a pruner says of a model on few images; more of it is tested through `vitfx.pruning.goal_search`."""

from __future__ import annotations

import pytest

from tests.support.checks import canonical
from tests.support.families import images
from vitfx.pruning import iterative_pruner
from vitfx.pruning.cost_model import parameters_price
from vitfx.pruning.iterative_pruner import IterativePruner
from vitfx.support.progress import Silent


@pytest.mark.parametrize(("count", "held_out"), [(7, 1), (8, 2)])
def test_one_image_has_no_standard_error(count: int, held_out: int) -> None:
    model, pixels = canonical(), images(count).double()
    pruner = IterativePruner(model, pixels, model(pixels).argmax(-1), scored=4, seed=0, watcher=Silent())
    assert len(pruner.held_out) == held_out
    found = pruner.held_out_loss(pruner.start())
    assert found.drop == 0 and found.error == (None if held_out == 1 else 0)


def test_a_model_is_scored_once_for_all_cuts_that_begin_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pixels = canonical(), images(8).double()
    scored: list[int] = []
    worth = iterative_pruner.unit_worth
    monkeypatch.setattr(iterative_pruner, "unit_worth", lambda *a, **k: scored.append(k["seed"]) or worth(*a, **k))
    pruner = IterativePruner(model, pixels, None, scored=4, seed=5, watcher=Silent())
    price = parameters_price(model)
    first = pruner.cut(pruner.start(), price, 0.9 * price.whole)
    assert pruner.cut(pruner.start(), price, 0.9 * price.whole).kept == first.kept
    assert scored == [5]
    deep = pruner.cut(first, price, 0.8 * price.whole)
    assert scored == [5, 6]
    less = pruner.cut(first, price, 0.85 * price.whole)
    assert scored == [5, 6] and price.total(less.kept) > price.total(deep.kept)
    pruner.cut(deep, price, 0.7 * price.whole)
    assert scored == [5, 6, 7]

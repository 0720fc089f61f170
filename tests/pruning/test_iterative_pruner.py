"""What a pruner says of a model on few images; more of it is tested through `vitfx.pruning.goal_search`."""

from __future__ import annotations

import pytest

from passes.merge_tokens import MergeBySchedule
from passes.token_schedule import TokenSchedule
from tests.support.checks import assert_equal, canonical
from tests.support.families import images
from vitfx.graph.stages import streams_at
from vitfx.pruning import iterative_pruner
from vitfx.pruning.cost_model import parameters_price
from vitfx.pruning.iterative_pruner import IterativePruner
from vitfx.support.progress import Silent


@pytest.mark.parametrize(("count", "held_out"), [(7, 1), (8, 2)])
def test_few_images_in_which_no_class_changes_prove_little(count: int, held_out: int) -> None:
    model, pixels = canonical(), images(count).double()
    pruner = IterativePruner(model, pixels, model(pixels).argmax(-1), scored=4, seed=0, watcher=Silent())
    assert len(pruner.held_out) == held_out
    found = pruner.held_out_loss(pruner.start)
    assert (found.drop, found.error) == (0, 50 / held_out)


def test_a_model_is_scored_once_for_all_cuts_that_begin_with_it(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pixels = canonical(), images(8).double()
    scored: list[int] = []
    worth = iterative_pruner.unit_worth
    monkeypatch.setattr(iterative_pruner, "unit_worth", lambda *a, **k: scored.append(k["seed"]) or worth(*a, **k))
    pruner = IterativePruner(model, pixels, None, scored=4, seed=5, watcher=Silent())
    price = parameters_price(model)
    first = pruner.cut(pruner.start, price, 0.9 * price.whole)
    assert pruner.cut(pruner.start, price, 0.9 * price.whole).kept == first.kept
    assert scored == [5]
    deep = pruner.cut(first, price, 0.8 * price.whole)
    assert scored == [5, 6]
    less = pruner.cut(first, price, 0.85 * price.whole)
    assert scored == [5, 6] and price.total(less.kept) > price.total(deep.kept)
    pruner.cut(deep, price, 0.7 * price.whole)
    assert scored == [5, 6, 7]


def test_what_was_judged_last_is_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, pixels = canonical(), images(16).double()
    pruner = IterativePruner(model, pixels, None, scored=8, seed=0, watcher=Silent())
    price = parameters_price(model)
    state = pruner.cut(pruner.start, price, 0.8 * price.whole)
    runs: list[int] = []
    logits = iterative_pruner._logits
    monkeypatch.setattr(iterative_pruner, "_logits", lambda *a: runs.append(len(a[1])) or logits(*a))
    loss = pruner.held_out_loss(state)
    assert pruner.held_out_loss(state) == pruner.held_out_loss(state, 100) == loss
    assert runs == [4]
    assert pruner.held_out_loss(state, 2) != loss
    pruner.merging = MergeBySchedule(TokenSchedule(((0, 4),)), pixels[:2])
    merged = pruner.held_out_loss(state, 2)
    assert runs == [4, 2, 2] and pruner.held_out_loss(pruner.start, 2) != merged
    assert runs == [4, 2, 2, 2]


@pytest.mark.parametrize("room", [1.0, 1e-5])
def test_streams_that_take_too_much_memory_are_computed_again(room: float, monkeypatch: pytest.MonkeyPatch) -> None:
    model, pixels = canonical(), images(16).double()
    price, sentences = parameters_price(model), list[str]()
    watcher = Silent()
    monkeypatch.setattr(watcher, "say", sentences.append)
    pruners = [
        IterativePruner(model, pixels, None, scored=8, seed=0, watcher=watcher, memory=memory)
        for memory in (None, room)
    ]
    cuts = [pruner.cut(pruner.start, price, 0.7 * price.whole) for pruner in pruners]
    assert cuts[0].kept == cuts[1].kept
    for one, other in zip(cuts[0].plan.refits, cuts[1].plan.refits, strict=True):
        assert_equal(one.weight, other.weight, 1e-9)
    size = 8 * sum(reading.stream.nbytes for reading in streams_at(pruners[0].stages, pixels[:1]))
    told = f"the original's streams would take {size / 2**20:.1f} MiB: they are computed again for every cut"
    assert sentences == ([] if room == 1.0 else [told])


@pytest.mark.parametrize("merges", [((1, 4),), ((0, 4), (1, 4), (2, 3))], ids=["once", "in every block"])
def test_so_many_attentions_stay_that_tokens_can_merge(merges: tuple[tuple[int, int], ...]) -> None:
    """Of sixteen tokens eight may merge at once."""
    model, pixels = canonical(), images(16).double()
    merging = MergeBySchedule(TokenSchedule(merges), pixels[:2])
    pruner = IterativePruner(model, pixels, None, scored=8, seed=0, watcher=Silent(), merging=merging)
    price = parameters_price(model)
    state = pruner.cut(pruner.start, price, price.floor)
    heads = [state.kept[f"a{block}"] for block in range(3)]
    assert sorted(heads) == [0] * (3 - (len(merges) + 1) // 2) + [1] * ((len(merges) + 1) // 2)
    assert pruner.held_out_loss(pruner.finish(state)).kl > 0
    pruner.merging = None
    assert not any(pruner.cut(pruner.start, price, price.floor).kept.values())

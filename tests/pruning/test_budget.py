from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitfx.pruning.budget import select
from vitfx.pruning.cost_model import Price
from vitfx.pruning.removal_order import RemovalOrder


def path(*costs):
    return RemovalOrder(tuple(range(len(costs))), torch.tensor([0.0, *costs], dtype=torch.float64).cumsum(0))


def line(units, each, base=0.0):
    """The price of 0, 1, … units."""
    cost = torch.arange(units + 1, dtype=torch.float64) * each
    cost[1:] += base
    return cost


def test_the_cheapest_by_what_they_save_go_first():
    paths = {"a0": path(1.0, 9.0), "m0": path(0.1, 0.2, 5.0)}
    price = Price("FLOPs", 10, {"a0": line(2, 4), "m0": line(3, 1)})
    assert price.whole == 21
    assert select(paths, price, 21) == {"a0": 0, "m0": 0}
    assert select(paths, price, 19.5) == {"a0": 0, "m0": 2}
    assert select(paths, price, 15) == {"a0": 1, "m0": 2}


def test_a_whole_sublayer_goes_at_once_where_its_last_unit_takes_most_of_the_time_with_it():
    paths = {"a0": path(0.1, 0.1, 0.1), "m0": path(0.05, 0.05, 0.05)}
    price = Price("ms", 0, {"a0": line(3, 0.01, base=9.0), "m0": line(3, 1.0)})
    assert select(paths, price, price.whole - 5) == {"a0": 3, "m0": 0}


def test_what_saves_nothing_stays():
    paths = {"a0": path(0.0, 0.0), "m0": path(1.0, 2.0)}
    price = Price("ms", 1, {"a0": torch.zeros(3, dtype=torch.float64), "m0": line(2, 1)})
    assert select(paths, price, 2) == {"a0": 0, "m0": 1}


def test_what_a_sublayer_keeps_is_a_multiple_where_that_is_asked():
    paths = {"m0": path(*[0.1] * 12), "a0": path(0.5, 0.5)}
    price = Price("ms", 0, {"m0": line(12, 1.0), "a0": line(2, 1.0)})
    assert select(paths, price, 11) == {"m0": 3, "a0": 0}
    assert select(paths, price, 11, {"m0": 8}) == {"m0": 4, "a0": 0}
    assert select(paths, price, 9, {"m0": 8}) == {"m0": 12, "a0": 0}
    assert select(paths, price, 9, {"m0": 4}) == {"m0": 8, "a0": 0}


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.floats(0.01, 1.0), st.randoms(use_true_random=False))
def test_multiples_are_kept_and_the_price_as_well(units, multiple, share, chance):
    paths = {"m0": path(*(chance.random() for _ in range(units)))}
    price = Price("ms", 1, {"m0": line(units, 1.0)})
    most = 1 + share * units
    (count,) = select(paths, price, most, {"m0": multiple}).values()
    assert count == 0 or (units - count) % multiple == 0
    assert price.total({"m0": units - count}) <= most


def test_a_price_that_no_model_has_is_refused():
    assert select({"m0": path(1.0)}, Price("ms", 5, {"m0": line(1, 1)}), 4.9) is None


def test_a_sublayer_that_is_not_named_keeps_all_in_the_total():
    price = Price("ms", 5, {"m0": line(4, 1), "a0": line(2, 3)})
    assert price.total({"m0": 1}) == pytest.approx(5 + 1 + 6)


costs = st.lists(st.floats(0, 10), min_size=1, max_size=4)


@settings(max_examples=60, deadline=None)
@given(costs, costs, st.floats(0.2, 3), st.floats(0.2, 3), st.floats(0.05, 0.95))
def test_no_choice_as_cheap_loses_less_than_one_move_less(first, second, each, other, share):
    """Against all choices: relaxation is optimal up to the move that crosses the line."""
    paths = {"a0": path(*sorted(first)), "m0": path(*sorted(second))}
    price = Price("ms", 1, {"a0": line(len(first), each), "m0": line(len(second), other)})
    most = price.rest + share * (price.whole - price.rest)
    found = select(paths, price, most)
    kept = {name: len(paths[name].units) - count for name, count in found.items()}
    assert price.total(kept) <= most + 1e-9

    def cost(counts):
        return sum(float(paths[name].costs[count]) for name, count in zip(paths, counts, strict=True))

    best = min(
        cost(counts)
        for counts in product(*(range(len(one.units) + 1) for one in paths.values()))
        if price.total({n: len(p.units) - c for (n, p), c in zip(paths.items(), counts, strict=True)}) <= most + 1e-9
    )
    steps = [float(one.costs.diff().max()) for one in paths.values()]
    assert cost(found.values()) <= best + max(steps) + 1e-9

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vitfx.pruning.removal_order import SHRINKAGE, removal_order


def covariance(units, channels, seed):
    mixed = torch.randn(units * channels, units * channels, dtype=torch.float64, generator=generator(seed))
    return mixed @ mixed.T / len(mixed)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def directly(fisher, matrix, weight, channels):
    """The same by solving anew, for every survivor and after each deletion, what the others say of it."""
    units = len(fisher)
    damped = matrix + SHRINKAGE * matrix.diagonal().mean() * torch.eye(len(matrix), dtype=torch.float64)
    alive, order, total, costs = list(range(units)), [], 0.0, [0.0]

    def columns(chosen):
        return [unit * channels + channel for unit in chosen for channel in range(channels)]

    while alive:
        found = {}
        for unit in alive:
            own, others = columns([unit]), columns([one for one in alive if one != unit])
            left = damped[own][:, own]
            if others:
                across = damped[own][:, others]
                left = left - across @ torch.linalg.solve(damped[others][:, others], across.T)
            part = weight[:, own].double()
            size = torch.trace(part @ left @ part.T) / torch.trace(part @ damped[own][:, own] @ part.T)
            found[unit] = float(fisher[unit] * size)
        unit = min(alive, key=found.__getitem__)
        total += found[unit]
        alive.remove(unit)
        order.append(unit)
        costs.append(total)
    return tuple(order), torch.tensor(costs, dtype=torch.float64)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 6), st.integers(1, 3), st.integers(0, 10**6))
def test_order_and_costs_are_those_of_solving_anew(units, channels, seed):
    matrix = covariance(units, channels, seed)
    fisher = torch.rand(units, dtype=torch.float64, generator=generator(seed + 1))
    weight = torch.randn(5, units * channels, generator=generator(seed + 2))
    order, costs = directly(fisher, matrix, weight, channels)
    found = removal_order(fisher, matrix, weight)
    assert found.units == order
    assert torch.allclose(found.costs, costs, rtol=1e-8, atol=1e-12)


def test_of_two_units_that_say_the_same_one_goes_first_and_the_other_last():
    inner = torch.randn(1000, 4, dtype=torch.float64)
    inner[:, 3] = inner[:, 1]
    found = removal_order(torch.ones(4, dtype=torch.float64), torch.cov(inner.T), torch.eye(4))
    assert found.units[0] in (1, 3)
    assert found.costs[1] < 0.05
    assert found.costs[2] - found.costs[1] > 0.8


def test_many_units_go_a_few_at_a_time_and_each_once():
    fisher = torch.rand(300, dtype=torch.float64)
    found = removal_order(fisher, covariance(300, 1, 0), torch.randn(8, 300))
    assert sorted(found.units) == list(range(300))
    assert len(found.costs) == 301
    assert bool((found.costs.diff() >= 0).all())
    assert found.costs[-1] <= fisher.sum() + 1e-12


def test_a_sublayer_that_never_varies_costs_nothing():
    found = removal_order(torch.zeros(3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64), torch.ones(2, 3))
    assert found.costs.tolist() == [0, 0, 0, 0]

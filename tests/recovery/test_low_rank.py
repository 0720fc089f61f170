"""vitfx.recovery.trainable: adapters change nothing at first, only they learn, and merged they are the same model."""

from __future__ import annotations

import torch
from torch import nn
from torch.fx import GraphModule
from torch.nn.utils import parametrize

from passes.stream import is_canonical
from tests.support.recover_runs import student
from vitfx.recovery.trainable import LowRank, add_adapters, merge_adapters

PIXELS = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def moved(graph_module: GraphModule) -> GraphModule:
    """With adapters that do something."""
    add_adapters(graph_module, 3, seed=0)
    with torch.no_grad():
        for part in graph_module.modules():
            if isinstance(part, LowRank):
                part.up.normal_(generator=torch.Generator().manual_seed(2)).mul_(0.1)
    return graph_module


def test_adapters_change_nothing_at_first() -> None:
    graph_module = student()
    before = graph_module(PIXELS)
    add_adapters(graph_module, 3, seed=0)
    assert torch.equal(graph_module(PIXELS), before)


def test_merged_they_are_the_same_model_with_the_same_parameters() -> None:
    plain = student()
    graph_module = moved(student())
    expected = graph_module(PIXELS).detach()
    assert float((expected - plain(PIXELS)).detach().abs().max()) > 1e-2
    merge_adapters(graph_module)
    assert float((graph_module(PIXELS) - expected).detach().abs().max() / expected.abs().max()) < 1e-6
    names = {name: value.shape for name, value in plain.state_dict().items()}
    assert {name: value.shape for name, value in graph_module.state_dict().items()} == names
    assert all(isinstance(value, nn.Parameter) for _, value in graph_module.named_parameters())
    assert not any(parametrize.is_parametrized(part) for part in graph_module.modules())
    is_canonical(graph_module)


def test_merging_twice_and_without_adapters_does_nothing() -> None:
    graph_module = student()
    before = {name: value.clone() for name, value in graph_module.state_dict().items()}
    merge_adapters(graph_module)
    assert all(torch.equal(value, before[name]) for name, value in graph_module.state_dict().items())


def test_the_difference_has_that_rank() -> None:
    plain, graph_module = student(), moved(student())
    merge_adapters(graph_module)
    change = graph_module.get_submodule("a1").q.weight - plain.get_submodule("a1").q.weight
    assert int(torch.linalg.matrix_rank(change.double(), rtol=1e-5)) == 3


def test_rank_is_at_most_a_weights_smaller_side() -> None:
    graph_module = student()
    add_adapters(graph_module, 1000, seed=0)
    # Four hidden neurons are left of m0.
    adapter = graph_module.get_submodule("m0").fc1.parametrizations.weight[0]
    assert (adapter.up.shape, adapter.down.shape) == ((4, 4), (4, 16))


def test_adapters_are_on_all_products_of_sublayers_and_the_seed_decides() -> None:
    first, again, other = student(), student(), student()
    for graph_module, seed in ((first, 0), (again, 0), (other, 1)):
        add_adapters(graph_module, 2, seed)
    found = [name for name, part in first.named_modules() if isinstance(part, LowRank)]
    parts = {name.partition(".parametrizations")[0] for name in found}
    assert parts == {"a0.q", "a0.k", "a0.v", "a0.out", "m0.fc1", "m0.out", "a1.q", "a1.k", "a1.v", "a1.out"}
    down = [one.get_submodule(found[0]).down for one in (first, again, other)]
    assert torch.equal(down[0], down[1])
    assert not torch.equal(down[0], down[2])

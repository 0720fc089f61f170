import math

import pytest
import torch

from passes.cost import measure_cost
from passes.plan import DeletionPlan, SublayerDeletion
from passes.stream import read_sites
from tests.support.checks import canonical
from tests.support.families import images
from vitfx.graph.verify import rewrite, tokens_of
from vitfx.pruning.cost_model import Price, flops_price, parameters_price


@pytest.mark.parametrize("name", ["vitfx", "torchvision"])
@pytest.mark.parametrize("share", [0.5, 0.0])
def test_what_a_price_predicts_is_what_a_pruned_model_costs(name, share):
    graph_module = canonical(name)
    pixels = images(2).double()
    sites = read_sites(graph_module)
    kept = {site.name: int(share * site.module.units) for site in sites}
    plan = DeletionPlan(
        tuple(
            SublayerDeletion(
                site.name, site.module.kind, tuple(range(kept[site.name], site.module.units)), site.module.units
            )
            for site in sites
        )
    )
    pruned = measure_cost(rewrite(graph_module, plan).graph_module, pixels.shape[1:])
    flops = flops_price(graph_module, pixels.shape[1:], tokens_of(graph_module, pixels))
    assert flops.whole == measure_cost(graph_module, pixels.shape[1:]).flops
    assert flops.total(kept) == pruned.flops
    parameters = parameters_price(graph_module)
    assert parameters.whole == sum(one.numel() for one in graph_module.parameters())
    # Where a whole sublayer goes its bias may move into one that stays, which has room for it already.
    assert parameters.total(kept) == pruned.parameters


def test_the_least_and_how_fast_it_is():
    sublayers = {"a0": torch.tensor([0.0, 1.0, 2.0]), "m0": torch.tensor([0.5, 3.0])}
    price = Price("ms", 1.5, sublayers)
    assert (price.whole, price.least) == (6.5, 2.0)
    assert price.speed_limit(8.0) == 4.0
    # Times that add up to more than the whole's leave less than nothing: no speed-up is known to be too much.
    assert Price("ms", -1.5, sublayers).speed_limit(8.0) == math.inf

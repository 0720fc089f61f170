"""What heads and neurons cost, in milliseconds, FLOPs or parameters, and what deleting them saves."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule

from passes.cost import measure_cost, shared_parameters, tokens_at, unit_flops, unit_parameters
from passes.dialect import Sublayer
from passes.stream import module_of, read_sites

FLOPS, PARAMETERS, MILLISECONDS = "FLOPs", "parameters", "ms"


@dataclass(frozen=True)
class Price:
    """What a model costs, as a function of how many units each sublayer keeps."""

    unit: str  #: what is counted, such as "FLOPs"
    rest: float  #: the cost of everything but the prunable sublayers
    sublayers: Mapping[str, Tensor]  #: by name: the cost with 0, 1, … all units, float64 (units + 1,), never falling

    @property
    def noun(self) -> str:
        """What a share of it is a share of."""
        return "time" if self.unit == MILLISECONDS else self.unit

    @property
    def whole(self) -> float:
        """The price of the model with nothing deleted."""
        return self.total({})

    @property
    def least(self) -> float:
        """The price without any attention or MLP. On small models, measured times may add up to less than nothing."""
        return self.total(dict.fromkeys(self.sublayers, 0))

    @property
    def floor(self) -> float:
        """The least total to ask for: slightly above `least`, because sums of floats round."""
        return self.least + 1e-9 * self.whole

    def speed_limit(self, plain: float) -> float:
        """How many times faster than `plain` the least model is; infinite where its price is not positive."""
        return plain / self.least if self.least > 0 else math.inf

    def total(self, counts: Mapping[str, int]) -> float:
        """The price of a model whose sublayers keep `counts` units; sublayers not named keep all."""
        return self.rest + sum(float(cost[counts.get(name, -1)]) for name, cost in self.sublayers.items())


def flops_price(graph_module: GraphModule, image: torch.Size, tokens: int) -> Price:
    """FLOPs for one image of shape (C, H, W), counted as `passes.cost` counts them."""
    modules = {site.name: site.module for site in read_sites(graph_module)}
    counts = tokens_at(graph_module, tokens)
    costs = {name: _line(module, unit_flops(module, counts[name])) for name, module in modules.items()}
    return _price(FLOPS, measure_cost(graph_module, image).flops, costs)


def parameters_price(graph_module: GraphModule) -> Price:
    """Numbers in the artifact; a sublayer's output bias and norm go with its last unit."""
    costs = {}
    for site in read_sites(graph_module):
        norm = module_of(graph_module, site.norm)
        extra = sum(parameter.numel() for parameter in norm.parameters()) if norm is not None else 0
        extra += 0 if site.module.out.bias is None else site.module.out.bias.numel()
        extra += shared_parameters(site.module)
        costs[site.name] = _line(site.module, unit_parameters(site.module))
        costs[site.name][1:] += extra
    return _price(PARAMETERS, sum(parameter.numel() for parameter in graph_module.parameters()), costs)


def _line(module: Sublayer, each: int) -> Tensor:
    return torch.arange(module.units + 1, dtype=torch.float64) * each


def _price(unit: str, whole: float, costs: Mapping[str, Tensor]) -> Price:
    return Price(unit, whole - sum(float(cost[-1]) for cost in costs.values()), costs)

"""Low-rank adapters (LoRA, Hu et al. 2021) on a canonical graph's weights, and their merging into these."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.utils import parametrize

from passes.dialect import Projection
from passes.stream import read_sites


class LowRank(nn.Module):
    """W -> W + up · down, with up (rows, rank) zero at first and down (rank, columns) drawn.

    Trained with a rate for adapters, the paper's factor α / rank is 1.
    """

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        rows, columns = weight.shape
        drawn = torch.randn(rank, columns, generator=generator) / columns**0.5
        self.down = nn.Parameter(drawn.to(weight))
        self.up = nn.Parameter(weight.new_zeros(rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def add_adapters(graph_module: GraphModule, rank: int, seed: int) -> None:
    """On the weights of all prunable sublayers: queries, keys, values, projections, hidden neurons.

    A rank above a weight's smaller side is that side's. The weights themselves get no gradients any more.
    """
    generator = torch.Generator().manual_seed(seed)
    for part in _weighted(graph_module):
        weight: Tensor = part.weight
        weight.requires_grad_(False)
        own = LowRank(weight, min(rank, *weight.shape), generator)
        parametrize.register_parametrization(part, "weight", own)


def merge_adapters(graph_module: GraphModule) -> None:
    """W + up · down becomes the weight: the graph has again the parameters that it had before."""
    for part in _weighted(graph_module):
        if parametrize.is_parametrized(part, "weight"):
            parametrize.remove_parametrizations(part, "weight", leave_parametrized=True)


def _weighted(graph_module: GraphModule) -> list[nn.Linear | Projection]:
    """In the order of the stream: everything in a sublayer that multiplies."""
    return [
        part
        for site in read_sites(graph_module)
        for part in site.module.modules()
        if isinstance(part, nn.Linear | Projection)
    ]

"""Canonical graphs that also answer with their residual stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from passes.stream import read_sites


def shared_sublayers(student: GraphModule, teacher: GraphModule) -> tuple[str, ...]:
    """The sublayers that both have, in their order."""
    ours = {site.name for site in read_sites(student)}
    return tuple(site.name for site in read_sites(teacher) if site.name in ours)


class Tapped(nn.Module):
    """(B, C, H, W) -> logits (B, K), and the streams (B, T, D) behind the named sublayers, by the graph's modules."""

    def __init__(self, graph_module: GraphModule, names: Sequence[str]) -> None:
        super().__init__()
        adds = {site.name: site.add for site in read_sites(graph_module)}
        graph, placed = Graph(), dict[Node, Node]()
        logits = graph.graph_copy(graph_module.graph, placed)
        graph.output((logits, tuple(placed[adds[name]] for name in names)))
        self.graph_module = GraphModule(graph_module, graph)

    def forward(self, pixels: Tensor) -> tuple[Any, tuple[Tensor, ...]]:
        logits, streams = self.graph_module(pixels)
        return logits, streams

"""Folds constants on the stream into the biases of what writes to it.

A constant commutes with the stream's additions, and only deleted sublayers stood between it and the writer before it:
so it goes into that writer's bias, or into the position table. Behind a sublayer that was not recognised there is no
bias to fold into, and the constant stays a node.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from passes.base import Pass, PassResult
from passes.dialect import AddConstant, Projection
from passes.stream import constant_sites, is_canonical, module_of, read_sites


class FoldConstants(Pass):
    """Requires and ensures a canonical graph. No constant is left that a writer right before it could carry.

    A projection without a bias gets one: that costs less than an addition to the stream.
    """

    requires = (is_canonical,)
    ensures = (is_canonical,)

    def rewrite(self, graph_module: GraphModule) -> PassResult:
        notes = []
        for node in constant_sites(graph_module):
            constant = module_of(graph_module, node)
            assert isinstance(constant, AddConstant)
            (stream,) = node.all_input_nodes
            carrier = _fold(graph_module, stream, constant.value.detach())
            if carrier is None:
                continue
            node.replace_all_uses_with(stream)
            graph_module.graph.erase_node(node)
            notes.append(f"{node.name} into {carrier}")
        return PassResult(graph_module, bool(notes), tuple(notes))


def _fold(graph_module: GraphModule, stream: Node, value: Tensor) -> str | None:
    """Adds the value to what carries constants at the end of `stream`: that one's name, or None where nothing does."""
    table = module_of(graph_module, stream)
    if isinstance(table, AddConstant):
        table.value = _sum(table.value, value)
        return stream.name
    for site in read_sites(graph_module):
        if site.add is stream:
            _add_to_bias(site.module.out, value)
            return f"the bias of {site.name}"
    return None


def _add_to_bias(projection: Projection, value: Tensor) -> None:
    projection.bias = nn.Parameter(value.clone()) if projection.bias is None else _sum(projection.bias, value)


def _sum(parameter: nn.Parameter, value: Tensor) -> nn.Parameter:
    """(D,) + (D,) stays (D,); if one differs from token to token, the sum is (T, D)."""
    with torch.no_grad():
        return nn.Parameter(parameter + value)

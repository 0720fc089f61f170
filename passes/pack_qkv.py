"""Queries, keys and values of a sublayer become one product."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from passes.base import Pass, PassResult
from passes.deployment import PackedAttention, linear_of
from passes.dialect import Attention
from passes.stream import module_of


class PackQkv(Pass):
    """Every Attention becomes a PackedAttention, whatever its heads and widths. A changed result is not canonical."""

    @torch.no_grad()
    def rewrite(self, graph_module: GraphModule) -> PassResult:
        names = []
        for node in graph_module.graph.nodes:
            module = module_of(graph_module, node)
            if isinstance(module, Attention):
                graph_module.set_submodule(str(node.target), _packed(module))
                names.append(str(node.target))
        return PassResult(graph_module, bool(names), (f"in {', '.join(names)}",) if names else ())


def _packed(module: Attention) -> PackedAttention:
    parts = (module.q, module.k, module.v)
    sizes = (module.q.out_features, module.k.out_features, module.v.out_features)
    weight = torch.cat([part.weight for part in parts])
    biased = any(part.bias is not None for part in parts)
    bias = torch.cat([_bias(part) for part in parts]) if biased else None
    return PackedAttention(linear_of(weight, bias), module.core, module.out, module.units, sizes)


def _bias(linear: nn.Linear) -> Tensor:
    return linear.weight.new_zeros(linear.out_features) if linear.bias is None else linear.bias

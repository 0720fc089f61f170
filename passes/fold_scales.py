"""The attention scale goes into the queries' weights."""

from __future__ import annotations

import torch
from torch.fx import GraphModule

from passes.base import Pass, PassResult
from passes.deployment import linear_of
from passes.dialect import Attention
from passes.stream import is_canonical, read_sites


class FoldScales(Pass):
    """Requires and ensures a canonical graph. softmax(s · (x Wqᵀ + b) kᵀ) = softmax((x (s Wq)ᵀ + s b) kᵀ)."""

    requires = (is_canonical,)
    ensures = (is_canonical,)

    @torch.no_grad()
    def rewrite(self, graph_module: GraphModule) -> PassResult:
        names = []
        for site in read_sites(graph_module):
            module = site.module
            # A norm behind the queries' projection takes the scale out again.
            if isinstance(module, Attention) and module.scale != 1.0 and module.core.q_norm is None:
                bias = None if module.q.bias is None else module.q.bias * module.scale
                module.q = linear_of(module.q.weight * module.scale, bias)
                module.core.scale = 1.0
                names.append(site.name)
        return PassResult(graph_module, bool(names), (f"of {', '.join(names)}",) if names else ())

"""Biases that attention does not need: those of the keys drop out, those of the values go into the projection's."""

from __future__ import annotations

import torch
from torch import nn
from torch.fx import GraphModule

from passes.base import Pass, PassResult
from passes.deployment import linear_of
from passes.dialect import Heads
from passes.stream import is_canonical, read_sites


class FoldBiases(Pass):
    """Requires and ensures a canonical graph.

    A key's bias adds q · bₖ to all scores of one query alike, and a softmax does not see that, unless keys are
    normalised or turned by their positions, or tokens are compared by them to merge. A softmax's weights sum to one,
    so that the values' bias comes out of it as it went in: P (V + 1 bᵥᵀ) Wᵀ + b = P V Wᵀ + (W bᵥ + b), unless a norm
    stands before the projection.
    """

    requires = (is_canonical,)
    ensures = (is_canonical,)

    @torch.no_grad()
    def rewrite(self, graph_module: GraphModule) -> PassResult:
        names = []
        for site in read_sites(graph_module):
            module = site.module
            if not isinstance(module, Heads):
                continue
            useless = module.k.bias is not None and module.core.bilinear and not site.keyed
            through = module.v.bias is not None and module.core.out_norm is None
            if not useless and not through:
                continue
            if useless:
                module.k = linear_of(module.k.weight, None)
            if through:
                out = module.out
                each = module.v.bias.double().unflatten(0, (module.units, 1, -1))
                bias = out.weight.double() @ each.expand(-1, module.core.group, -1).flatten()
                bias = bias if out.bias is None else out.bias.double() + bias
                out.bias = nn.Parameter(bias.to(out.weight.dtype))
                module.v = linear_of(module.v.weight, None)
            names.append(site.name)
        return PassResult(graph_module, bool(names), (f"of {', '.join(names)}",) if names else ())

"""Survivors make up for the dead: sublayers that stay write with the projections that the plan has fitted.

`passes.least_squares` has the mathematics of the fit; its statistics come from whoever runs the model. The form is
exact: a sublayer's output adds to the stream, so that a linear map of its inner channels and a constant cost nothing on
top of the projection that it has anyway.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from passes.base import Pass, PassError, PassResult
from passes.dialect import Projection
from passes.plan import DeletionPlan
from passes.stream import is_canonical, read_sites

_CARRIED_OUT = "refit"
"""Under this key a sublayer's node keeps, through copies of the graph, the refit that it got."""


class Compensate(Pass):
    """Requires a canonical graph from which the plan's units have been deleted; ensures a canonical graph.

    A sublayer whose node already carries the plan's refit is left alone, so that a second run changes nothing. The
    weight alone does not tell: a refit may keep it and change the bias.
    """

    requires = (is_canonical,)
    ensures = (is_canonical,)

    def __init__(self, plan: DeletionPlan) -> None:
        self.plan = plan

    def rewrite(self, graph_module: GraphModule) -> PassResult:
        notes = []
        sites = {site.name: site for site in read_sites(graph_module)}
        for refit in self.plan.refits:
            site = sites.get(refit.name)
            if site is None:
                raise PassError(f"the plan refits {refit.name}, which the graph does not have")
            out = site.module.out
            if out.weight.shape != refit.weight.shape:
                raise PassError(
                    f"the plan refits {refit.name} with a weight of {tuple(refit.weight.shape)}, "
                    f"which has {tuple(out.weight.shape)}: carry out the plan's deletions first"
                )
            if site.node.meta.get(_CARRIED_OUT) is refit:
                continue
            site.module.out = refitted(out, refit.weight, refit.shift)
            site.node.meta[_CARRIED_OUT] = refit
            notes.append(f"{refit.name} writes with refitted weights")
        return PassResult(graph_module, bool(notes), tuple(notes))


def refitted(out: Projection, weight: Tensor, shift: Tensor) -> Projection:
    """A projection with this weight (D, E), and the shift (D,) added to the old one's bias."""
    bias = shift if out.bias is None else out.bias.detach() + shift.to(out.bias)
    new = Projection(weight.shape[1], weight.shape[0], tuple(bias.shape)).to(out.weight)
    with torch.no_grad():
        new.weight.copy_(weight)
        assert isinstance(new.bias, nn.Parameter)
        new.bias.copy_(bias)
    return new

"""A norm's scale and shift go into the linear maps that read it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from passes.aten import aten, attribute_tensor
from passes.base import Pass, PassResult
from passes.deployment import linear_of
from passes.dialect import Sublayer
from passes.norms import NORMS, SINGLE, Norm, NormOnNorm, plain, shift_of
from passes.stream import is_canonical, module_of, read_sites

_ALONG_TOKENS = frozenset({aten.select.int, aten.slice.Tensor, aten.mean.dim})


class FoldNorms(Pass):
    """Requires and ensures a canonical graph. W (s ⊙ x̂ + t) + b = (W diag s) x̂ + (W t + b).

    The final norm is folded where the head picks or averages tokens and then is one linear map.
    """

    requires = (is_canonical,)
    ensures = (is_canonical,)

    def rewrite(self, graph_module: GraphModule) -> PassResult:
        folded = []
        for site in read_sites(graph_module):
            norm = module_of(graph_module, site.norm)
            assert isinstance(norm, NORMS)
            if norm.elementwise_affine:
                fold_into(site.module, norm)
                left = NormOnNorm(norm.first, plain(norm.second)) if isinstance(norm, NormOnNorm) else plain(norm)
                graph_module.set_submodule(str(site.norm.target), left)
                folded.append(site.name)
            if _fold_inner(site.module):
                folded.append(f"the projection of {site.name}")
        if _fold_final(graph_module):
            folded.append("the head")
        return PassResult(graph_module, bool(folded), (f"into {', '.join(folded)}",) if folded else ())


def fold_into(module: Sublayer, norm: Norm) -> None:
    """The norm's scale and shift, into what reads the normalised stream."""
    for name, linear in zip(module.reads, module.linears, strict=True):
        setattr(module, name, _folded(linear, norm))


@torch.no_grad()
def _fold_inner(module: Sublayer) -> bool:
    """The scale and shift of a norm of the inner channels, into the projection that reads them."""
    norm, out = module.inner_norm, module.out
    if norm is None or (norm.weight is None and norm.bias is None):
        return False
    if norm.bias is not None:
        shift = out.weight.double() @ norm.bias.double()
        out.bias = nn.Parameter((shift if out.bias is None else out.bias.double() + shift).to(out.weight.dtype))
    if norm.weight is not None:
        out.weight = nn.Parameter((out.weight.double() * norm.weight.double()).to(out.weight.dtype))
    norm.weight = norm.bias = None
    return True


@torch.no_grad()
def _folded(linear: nn.Linear, norm: Norm) -> nn.Linear:
    weight, bias = _fold(linear.weight, linear.bias, norm)
    return linear_of(weight, bias)


def _fold(weight: Tensor, bias: Tensor | None, norm: Norm) -> tuple[Tensor, Tensor | None]:
    """In float64, because the bias sums many small numbers."""
    own, scale = shift_of(norm), norm.weight
    assert scale is not None
    shift = None if own is None else weight.double() @ own.double()
    if shift is not None:
        bias = (shift if bias is None else bias.double() + shift).to(weight.dtype)
    return (weight.double() * scale.double()).to(weight.dtype), bias


@torch.no_grad()
def _fold_final(graph_module: GraphModule) -> bool:
    calls = [node for node in graph_module.graph.nodes if node.op == "call_module"]
    if len(calls) < 2:
        return False
    norm, head = (module_of(graph_module, node) for node in calls[-2:])
    if not isinstance(norm, SINGLE) or not norm.elementwise_affine or not isinstance(head, GraphModule):
        return False
    linear = _only_linear(head, norm.normalized_shape[0])
    if linear is None:
        return False
    _, weight_node, bias_node = linear.all_input_nodes
    weight, bias = attribute_tensor(head, weight_node), attribute_tensor(head, bias_node)
    assert weight is not None and bias is not None
    folded_weight, folded_bias = _fold(weight, bias, norm)
    assert folded_bias is not None
    setattr(head, str(weight_node.target), nn.Parameter(folded_weight))
    setattr(head, str(bias_node.target), nn.Parameter(folded_bias))
    graph_module.set_submodule(str(calls[-2].target), plain(norm))
    return True


def _only_linear(head: GraphModule, width: int) -> Node | None:
    """The linear map with weight and bias of its own that alone reads the head's input, all channels of it."""
    node = next(node for node in head.graph.nodes if node.op == "placeholder")
    while len(node.users) == 1:
        (node,) = node.users
        if node.target is aten.linear.default:
            parameters = node.all_input_nodes[1:]
            own = [attribute_tensor(head, parameter) for parameter in parameters if len(parameter.users) == 1]
            whole = len(own) == 2 and own[0] is not None and own[1] is not None and own[0].shape[1] == width
            return node if whole else None
        if node.target not in _ALONG_TOKENS or not _along_tokens(node):
            return None
    return None


def _along_tokens(node: Node) -> bool:
    """It picks or averages images or tokens of (B, T, D), not channels."""
    axes = node.args[1] if len(node.args) > 1 else 0
    return all(axis in (0, 1, -2) for axis in (axes if isinstance(axes, list | tuple) else (axes,)))

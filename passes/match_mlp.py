"""Recognising an MLP by its structure: linear, activation, linear, perhaps a LayerScale or a factor behind them.

Gated MLPs have two linear maps, or one that is split, of which one goes through the activation and gates the other."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.fx import Node

from passes.aten import aten, backward_slice, cut_points
from passes.attention_core import InnerNorm
from passes.dialect import Projection
from passes.layout import Mismatch, Walker, element_ids
from passes.match_activation import match_activation
from passes.match_transforms import find_inner_norm
from passes.mlp import GatedMlp, Mlp, Neurons


def match_mlp(walker: Walker, norm: Node, result: Node) -> Neurons:
    """The MLP that computes `result` from the normalised stream `norm`. Raises Mismatch, saying why not."""
    after = walker.trail(result, gains=True)
    second = after.start
    out_weight, out_bias = walker.weights(second)
    hidden_node, inner_norm = find_inner_norm(walker, norm, cast(Node, second.args[0]))
    if after.path:
        raise Mismatch(f"{after.path[0].name} ({after.path[0].target}) moves the tokens behind {second.name}")
    gated = _gated(walker, norm, hidden_node)
    module = _plain(walker, norm, hidden_node, out_bias) if gated is None else gated
    if inner_norm is not None:
        module.hidden_norm = InnerNorm.of(inner_norm.kind, inner_norm.eps, inner_norm.weight, inner_norm.bias)
    if gated is not None:
        bias_shape = None if out_bias is None else tuple(out_bias.shape)
        module.out = Projection(out_weight.shape[1], out_weight.shape[0], bias_shape).to(out_weight)
    gains = after.gains(out_weight)
    with torch.no_grad():
        module.out.weight.copy_(out_weight * gains[:, None])
        if module.out.bias is not None and out_bias is not None:
            module.out.bias.copy_(out_bias * gains)
    return module


def _plain(walker: Walker, norm: Node, hidden_node: Node, out_bias: Tensor | None) -> Mlp:
    """All but the values of the projection."""
    first = _last_rows(walker, norm, hidden_node)
    rows = None if first is None else _rows(walker, norm, first)
    if first is None or rows is None:
        raise Mismatch(_why_no_rows(walker, norm, hidden_node))
    weight, bias = rows
    activation = match_activation(walker, first, hidden_node)
    hidden, width = weight.shape
    module = Mlp(width, hidden, activation, bias is not None, None if out_bias is None else (width,))
    module = module.to(weight.dtype)
    _fill(module.fc1, weight, bias)
    return module


def _fill(linear: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    with torch.no_grad():
        linear.weight.copy_(weight)
        if bias is not None:
            linear.bias.copy_(bias)


def _gated(walker: Walker, norm: Node, hidden: Node) -> GatedMlp | None:
    """All but the projection, where the hidden neurons are a product of two things computed from the stream."""
    if hidden.target is not aten.mul.Tensor or not all(walker.carries_data(node) for node in hidden.all_input_nodes):
        return None
    factors = cast(tuple[Node, Node], hidden.args[:2])
    for gate, up in (factors, factors[::-1]):
        source = _last_rows(walker, norm, gate)
        parts = [None if node is None else _rows(walker, norm, node) for node in (source, up)]
        # x · σ(x) is an activation, and no gate.
        if source is None or source is up or parts[0] is None or parts[1] is None:
            continue
        activation = match_activation(walker, source, gate)
        (gate_weight, gate_bias), (up_weight, up_bias) = parts[0], parts[1]
        neurons, width = gate_weight.shape
        module = GatedMlp(width, neurons, activation, (gate_bias is not None, up_bias is not None))
        module = module.to(gate_weight.dtype)
        _fill(module.gate, gate_weight, gate_bias)
        _fill(module.up, up_weight, up_bias)
        return module
    return None


def _last_rows(walker: Walker, norm: Node, end: Node) -> Node | None:
    """The last node that all of `end` is computed from and that is rows of a linear map of the stream, or itself."""
    inside = set(backward_slice(end, norm))
    cuts = cut_points([norm, *(node for node in walker.data if node in inside)])
    return next((node for node in reversed(cuts[1:]) if _rows(walker, norm, node) is not None), None)


def _rows(walker: Walker, norm: Node, node: Node) -> tuple[Tensor, Tensor | None] | None:
    """The rows of a linear map of the normalised stream, and their biases, that `node` is; None where it is not."""
    if node.target is aten.add.Tensor and not node.kwargs:
        return _shifted(walker, norm, node)
    trail = walker.trail(node)
    linear = trail.start
    if linear.target is not aten.linear.default or linear.args[0] is not norm or trail.factor != 1.0:
        return None
    weight, bias = walker.weights(linear)
    ids = walker.indices(trail, element_ids(walker.values[linear].shape))
    positions = walker.values[norm].shape[:-1]
    rows = ids % weight.shape[0]
    places = torch.arange(positions.numel()).view(*positions, 1)
    if ids.shape[:-1] != positions or not torch.equal(ids // weight.shape[0], places.expand_as(ids)):
        return None
    chosen = rows.flatten(0, -2)[0]
    if not torch.equal(rows, chosen.expand_as(rows)):
        return None
    return weight[chosen], None if bias is None else bias[chosen]


def _shifted(walker: Walker, norm: Node, add: Node) -> tuple[Tensor, Tensor | None] | None:
    """`_rows` of rows whose biases are added by themselves."""
    for node, other in (add.args[:2], add.args[1::-1]):
        shift = walker.constant(other)
        rows = _rows(walker, norm, node) if isinstance(node, Node) and walker.carries_data(node) else None
        if shift is not None and rows is not None and shift.shape == (len(rows[0]),):
            return rows[0], shift if rows[1] is None else rows[1] + shift
    return None


def _why_no_rows(walker: Walker, norm: Node, hidden: Node) -> str:
    """What stands before the hidden activation, which is not one linear map of the normalised stream."""
    between = [node for node in backward_slice(hidden, norm) if walker.carries_data(node)]
    linears = [node for node in between if node.target is aten.linear.default]
    if len(linears) != 1:
        return f"{len(linears)} linear projections before the last one of an MLP"
    return f"{linears[0].name} reads {linears[0].args[0]} and not the norm {norm.name}"

"""Recognising an MLP by its structure: linear, activation, linear, perhaps a LayerScale or a factor behind them."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor
from torch.fx import Node

from passes.aten import aten, backward_slice
from passes.dialect import ACTIVATIONS, Mlp
from passes.layout import Mismatch, Walker

_POINTWISE = frozenset(
    {
        aten.gelu.default,
        aten.relu.default,
        aten.silu.default,
        aten.hardswish.default,
        aten.sigmoid.default,
        aten.tanh.default,
        aten.erf.default,
        aten.pow.Tensor_Scalar,
        aten.mul.Tensor,
        aten.mul.Scalar,
        aten.div.Tensor,
        aten.add.Tensor,
        aten.add.Scalar,
    }
)


def match_mlp(walker: Walker, norm: Node, result: Node) -> Mlp:
    """The Mlp that computes `result` from the normalised stream `norm`. Raises Mismatch, saying why not."""
    after = walker.trail(result, gains=True)
    second = after.start
    out_weight, out_bias = walker.weights(second)
    hidden_node = cast(Node, second.args[0])
    first = _first_linear(walker, norm, hidden_node)
    weight, bias = walker.weights(first)
    if first.args[0] is not norm:
        raise Mismatch(f"{first.name} reads {first.args[0]} and not the LayerNorm {norm.name}")
    if after.path:
        raise Mismatch(f"{after.path[0].name} ({after.path[0].target}) moves the tokens behind {second.name}")
    activation = _activation(walker.values[first], walker.values[hidden_node])
    width, hidden = out_weight.shape
    gains = after.gains(out_weight)
    module = Mlp(width, hidden, activation, bias is not None, None if out_bias is None else (width,))
    module = module.to(weight.dtype)
    with torch.no_grad():
        module.fc1.weight.copy_(weight)
        if bias is not None:
            module.fc1.bias.copy_(bias)
        module.out.weight.copy_(out_weight * gains[:, None])
        if module.out.bias is not None and out_bias is not None:
            module.out.bias.copy_(out_bias * gains)
    return module


def _first_linear(walker: Walker, norm: Node, hidden: Node) -> Node:
    """The one linear from which only pointwise operators lead to the hidden activation."""
    between = [node for node in backward_slice(hidden, norm) if walker.carries_data(node)]
    linears = [node for node in between if node.target is aten.linear.default]
    if len(linears) != 1:
        raise Mismatch(f"{len(linears)} linear projections before the last one of an MLP")
    foreign = [node for node in between if node is not linears[0] and node.target not in _POINTWISE]
    if foreign:
        raise Mismatch(f"{foreign[0].name} ({foreign[0].target}) is not part of an MLP")
    return linears[0]


def _activation(before: Tensor, after: Tensor) -> str:
    """The activation function is recognised by its values: implementations differ, functions do not."""
    tolerance = 1e-5 if before.dtype == torch.float32 else 1e-9
    for name, function in ACTIVATIONS.items():
        if before.shape == after.shape and torch.allclose(function(before), after, rtol=tolerance, atol=tolerance):
            return name
    raise Mismatch("the activation is none of " + ", ".join(ACTIVATIONS))

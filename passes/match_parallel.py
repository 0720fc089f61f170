"""Sublayers that read one stream side by side: of a kind, they are one sublayer with all of their units.

    x + A₁(n₁(x)) + A₂(n₂(x)) = x + [A₁ A₂](x̂),   n(x) = s ⊙ x̂ + t

Their norms differ in scale and shift alone, which go into the projections that read them (Touvron et al. 2022,
arXiv:2203.09795, has such blocks).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor
from torch.fx import Node

from passes.aten import aten
from passes.deployment import linear_of
from passes.dialect import Attention, Projection, Sublayer
from passes.fold_norms import fold_into
from passes.layout import Walker
from passes.mlp import GatedMlp, Mlp, Neurons
from passes.norms import Norm, NormOnNorm, plain

Matched = tuple[Norm, Sublayer]


def match_parallel(walker: Walker, branch: Node, match: Callable[[Node], Matched]) -> list[Matched] | None:
    """Norm and sublayer of a branch that is a sum of several of a kind, or of attention and of an MLP; None where it is
    neither.

    match: recognises a summand, or raises Mismatch.
    """
    terms = summands(walker, branch)
    if len(terms) < 2:
        return None
    matched = [match(term) for term in terms]
    kinds = [[pair for pair in matched if isinstance(pair[1], kind)] for kind in (Attention, Neurons)]
    merged = [pairs[0] if len(pairs) == 1 else _merge(pairs) for pairs in kinds if pairs]
    return None if None in merged else [pair for pair in merged if pair is not None]


def _merge(matched: Sequence[Matched]) -> Matched | None:
    """One for several sublayers of one kind; None where they can't be one."""
    modules = [module for _, module in matched]
    norms = [norm for norm, _ in matched if not isinstance(norm, NormOnNorm)]
    alike = len({(type(norm), norm.eps) for norm in norms}) == len({_like(module) for module in modules}) == 1
    if not alike or len(norms) < len(matched):
        return None
    for norm, module in zip(norms, modules, strict=True):
        if norm.elementwise_affine:
            fold_into(module, norm)
    merged = _merged(modules)
    return None if merged is None else (plain(norms[0]), merged)


def summands(walker: Walker, node: Node) -> list[Node]:
    """The nodes whose sum it is: a tree of additions, or the sum of a stack."""
    arguments = list(node.args)
    if node.target is aten.add.Tensor and not node.kwargs and all(_is_data(walker, part) for part in arguments):
        return [term for part in arguments for term in summands(walker, cast(Node, part))]
    if node.target is aten.sum.dim_IntList and arguments[1:] == [[0]]:
        stack = cast(Node, arguments[0])
        if stack.target is aten.stack.default and (len(stack.args) == 1 or stack.args[1] == 0):
            return list(cast("Sequence[Node]", stack.args[0]))
    return [node]


def _is_data(walker: Walker, node: object) -> bool:
    return isinstance(node, Node) and walker.carries_data(node)


def _like(module: Sublayer) -> tuple[object, ...]:
    """What sublayers that are merged share."""
    if isinstance(module, Attention):
        return Attention, module.head_dim, module.value_dim, module.scale
    assert isinstance(module, Mlp | GatedMlp)
    return type(module), module.activation


@torch.no_grad()
def _merged(modules: Sequence[Sublayer]) -> Sublayer | None:
    first, units = modules[0], sum(module.units for module in modules)
    if any(module.inner_norm is not None for module in modules):
        return None
    merged: Sublayer
    if isinstance(first, Attention):
        if not all(isinstance(module, Attention) and module.core.plain for module in modules):
            return None
        merged = Attention(first.q.in_features, units, first.head_dim, first.value_dim, first.scale)
    else:
        assert isinstance(first, Mlp | GatedMlp)
        merged = type(first)(first.linears[0].in_features, units, first.activation)
    for number, name in enumerate(first.reads):
        linears = [module.linears[number] for module in modules]
        weight = torch.cat(tuple(linear.weight for linear in linears))
        biases: list[Tensor] = [
            weight.new_zeros(part.out_features) if part.bias is None else part.bias for part in linears
        ]
        any_bias = any(part.bias is not None for part in linears)
        setattr(merged, name, linear_of(weight, torch.cat(biases) if any_bias else None))
    merged.out = _projection([module.out for module in modules])
    return merged


def _projection(parts: Sequence[Projection]) -> Projection:
    """Reads all parts' inner channels side by side."""
    weight = torch.cat([part.weight for part in parts], dim=1)
    biases: list[Tensor] = [part.bias for part in parts if part.bias is not None]
    made = Projection(weight.shape[1], weight.shape[0], tuple(biases[0].shape) if biases else None).to(weight)
    made.weight.copy_(weight)
    if made.bias is not None:
        made.bias.copy_(torch.stack(biases).sum(dim=0))
    return made

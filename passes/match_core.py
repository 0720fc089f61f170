"""Finding the attention product of a sublayer: softmax(scale · q kᵀ + bias) v, fused or written out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.fx import Node

from passes.aten import SHAPE_OPS, aten, backward_slice, replay
from passes.layout import Mismatch, Walker, element_ids

SOFTMAX_OPS = (aten.softmax.int, aten._softmax.default)
SDPA = aten.scaled_dot_product_attention.default
CASTS = (aten.to.dtype, aten._to_copy.default)
PRODUCTS = (aten.matmul.default, aten.bmm.default)


@dataclass
class Core:
    """One attention product. scale: everything that multiplies q kᵀ apart from what lies before q and k. bias: what is
    added to the scores, (leading axes of the scores, T, T) or broadcastable to it. group: how many queries in a row
    share a key and a value."""

    q: Node
    k: Node
    v: Node
    result: Node
    scale: float
    k_transposed: bool
    bias: Tensor | None = None
    group: int = 1


def find_core(walker: Walker, norm: Node, result: Node) -> Core:
    inside = list(backward_slice(result, norm))
    cores = [node for node in inside if node.target in (SDPA, *SOFTMAX_OPS)]
    if len(cores) != 1:
        raise Mismatch(f"it has {len(cores)} attention products, not one")
    return _fused_core(walker, cores[0]) if cores[0].target is SDPA else _written_core(walker, cores[0], set(inside))


def _fused_core(walker: Walker, sdpa: Node) -> Core:
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given = dict(zip(names, sdpa.args, strict=False)) | dict(sdpa.kwargs)
    if given.get("dropout_p") or given.get("is_causal"):
        raise Mismatch("its attention has dropout or a causal mask")
    bias = _bias(walker, given.get("attn_mask"))
    q, k, v = (cast(Node, given[name]) for name in names[:3])
    scale = given.get("scale")
    head_dim = walker.values[q].shape[-1]
    group = walker.values[q].shape[-3] // walker.values[k].shape[-3] if given.get("enable_gqa") else 1
    return Core(q, k, v, sdpa, _scale(scale, head_dim), False, bias, group)


def _written_core(walker: Walker, softmax: Node, inside: set[Node]) -> Core:
    if cast(int, softmax.args[1]) not in (-1, walker.values[softmax].dim() - 1):
        raise Mismatch(f"{softmax.name} is not over the last axis")
    scores, scale = cast(Node, softmax.args[0]), 1.0
    bias: Tensor | None = None
    while scores.target not in PRODUCTS:
        trail = walker.trail(scores)
        if trail.start is not scores:
            _check_order(walker, trail.start, trail.path)
            scores, scale = trail.start, scale * trail.factor
        elif scores.target is aten.add.Tensor:
            scores, added = _without_bias(walker, scores)
            if added is not None:
                added = scale * added.expand(walker.values[scores].shape)
                bias = added if bias is None else bias + added.reshape(bias.shape)
        else:
            raise Mismatch(f"{scores.name} ({scores.target}) stands between q kᵀ and the softmax")
    product = _product_with_values(walker, softmax, inside)
    q, k = cast(tuple[Node, Node], scores.args[:2])
    return Core(q, k, cast(Node, product.args[1]), product, scale, True, bias)


def _scale(given: object, head_dim: int) -> float:
    return float(cast(float, given)) if given is not None else float(head_dim**-0.5)


def _product_with_values(walker: Walker, softmax: Node, inside: set[Node]) -> Node:
    pattern = softmax
    path: list[Node] = []
    while True:
        users = [user for user in pattern.users if user in inside]
        if len(users) != 1:
            raise Mismatch(f"the attention pattern {pattern.name} is read {len(users)} times")
        if users[0].target in PRODUCTS and users[0].args[0] is pattern:
            _check_order(walker, softmax, path)
            return users[0]
        if users[0].target not in SHAPE_OPS and users[0].target not in CASTS:
            raise Mismatch(f"{users[0].name} ({users[0].target}) changes the attention pattern")
        pattern = users[0]
        if pattern.target in SHAPE_OPS:
            path.append(pattern)


def _check_order(walker: Walker, pattern: Node, path: list[Node]) -> None:
    """Between q kᵀ, softmax and v, leading axes may be merged and split (einsum does), rows and columns stay."""
    ids = element_ids(walker.values[pattern].shape)
    result = replay(path, ids, walker.values)
    if result.shape[-2:] != ids.shape[-2:] or not torch.equal(result.flatten(), ids.flatten()):
        raise Mismatch(f"{path[-1].name} ({path[-1].target}) reorders the attention pattern")


def _without_bias(walker: Walker, add: Node) -> tuple[Node, Tensor | None]:
    scores, mask = cast(tuple[Node, Node], add.args[:2])
    if not walker.carries_data(scores):
        scores, mask = mask, scores
    return scores, _bias(walker, mask)


def _bias(walker: Walker, mask: object) -> Tensor | None:
    """What a mask adds to the scores: −∞ where it hides, nothing where it hides nothing."""
    if mask is None:
        return None
    value = walker.constant(mask)
    if value is None:
        raise Mismatch("the attention mask is computed from the image")
    if value.dtype == torch.bool:
        value = torch.zeros(value.shape).masked_fill(~value, -torch.inf)
    return value if bool((value != 0).any()) else None

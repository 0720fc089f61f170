"""Recognising multi-head self-attention by its structure: softmax(scale · q kᵀ) v between linear projections.

Fused or separate q, k, v, any order of axes, SDPA or written out (matmul, softmax, matmul), LayerScale or a factor
behind the projection. The answer is a dialect `Attention` whose parameters are copies, so weights that are shared with
another part of the model are left alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.fx import Node

from passes.aten import SHAPE_OPS, aten, backward_slice, replay
from passes.dialect import Attention
from passes.layout import Mismatch, Trail, Walker, element_ids, rows_of

SOFTMAX_OPS = (aten.softmax.int, aten._softmax.default)
SDPA = aten.scaled_dot_product_attention.default
_PRODUCTS = (aten.matmul.default, aten.bmm.default)
_CASTS = (aten.to.dtype, aten._to_copy.default)


@dataclass
class _Core:
    """One attention product."""

    q: Node
    k: Node
    v: Node
    result: Node
    scale: float  #: all that multiplies q kᵀ behind q and k
    k_transposed: bool


@dataclass
class _Source:
    """One of q, k, v."""

    weight: Tensor  #: of its projection
    bias: Tensor | None
    rows: Tensor  #: (H, d), of the weight by head
    images: Tensor  #: the image of each leading index
    factor: float  #: multiplies the projection


def match_attention(walker: Walker, norm: Node, result: Node) -> Attention:
    """The Attention that computes `result` from the normalised stream `norm`. Raises Mismatch, saying why not."""
    core = _find_core(walker, norm, result)
    batch, tokens, width = walker.values[norm].shape
    q = _source(walker, norm, core.q)
    k = _source(walker, norm, core.k, transposed=core.k_transposed)
    v = _source(walker, norm, core.v)
    columns, weight, bias, gains = _output(walker, core, v.images, result, (batch, tokens, width))
    heads, head_dim = q.rows.shape
    if not (torch.equal(q.images, v.images) and torch.equal(k.images, v.images)):
        raise Mismatch("queries, keys and values come in different orders of images and heads")
    if k.rows.shape != q.rows.shape or v.rows.shape[0] != heads:
        shapes = [f"{part.rows.shape[0]} heads of {part.rows.shape[1]}" for part in (q, k, v)]
        raise Mismatch(f"queries are {shapes[0]} channels, keys {shapes[1]}, values {shapes[2]}")
    if columns.shape != v.rows.shape:
        raise Mismatch("the projection does not read every head's channels exactly once")
    module = Attention(
        width,
        heads,
        head_dim,
        v.rows.shape[1],
        core.scale * q.factor * k.factor,
        (q.bias is not None, k.bias is not None, v.bias is not None),
        None if bias is None else (width,),
    ).to(weight.dtype)
    weight = weight[:, columns.flatten()] * v.factor
    with torch.no_grad():
        for linear, source in ((module.q, q), (module.k, k), (module.v, v)):
            _fill(linear, source)
        module.out.weight.copy_(weight * gains[:, None])
        if module.out.bias is not None and bias is not None:
            module.out.bias.copy_(bias * gains)
    return module


def _fill(linear: nn.Linear, source: _Source) -> None:
    rows = source.rows.flatten()
    linear.weight.copy_(source.weight[rows])
    if source.bias is not None:
        linear.bias.copy_(source.bias[rows])


def _find_core(walker: Walker, norm: Node, result: Node) -> _Core:
    inside = list(backward_slice(result, norm))
    cores = [node for node in inside if node.target in (SDPA, *SOFTMAX_OPS)]
    if len(cores) != 1:
        raise Mismatch(f"it has {len(cores)} attention products, not one")
    return _fused_core(walker, cores[0]) if cores[0].target is SDPA else _written_core(walker, cores[0], set(inside))


def _fused_core(walker: Walker, sdpa: Node) -> _Core:
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    given = dict(zip(names, sdpa.args, strict=False)) | dict(sdpa.kwargs)
    if given.get("dropout_p") or given.get("is_causal") or given.get("enable_gqa"):
        raise Mismatch("its attention has dropout, a causal mask or grouped queries")
    _check_mask(walker, given.get("attn_mask"))
    q, k, v = (cast(Node, given[name]) for name in names[:3])
    scale = given.get("scale")
    head_dim = walker.values[q].shape[-1]
    return _Core(q, k, v, sdpa, float(cast(float, scale)) if scale is not None else head_dim**-0.5, False)


def _written_core(walker: Walker, softmax: Node, inside: set[Node]) -> _Core:
    if cast(int, softmax.args[1]) not in (-1, walker.values[softmax].dim() - 1):
        raise Mismatch(f"{softmax.name} is not over the last axis")
    scores, scale = cast(Node, softmax.args[0]), 1.0
    while scores.target not in _PRODUCTS:
        trail = walker.trail(scores)
        if trail.start is not scores:
            _check_order(walker, trail.start, trail.path)
            scores, scale = trail.start, scale * trail.factor
        elif scores.target is aten.add.Tensor:
            scores = _without_mask(walker, scores)
        else:
            raise Mismatch(f"{scores.name} ({scores.target}) stands between q kᵀ and the softmax")
    product = _product_with_values(walker, softmax, inside)
    q, k = cast(tuple[Node, Node], scores.args[:2])
    return _Core(q, k, cast(Node, product.args[1]), product, scale, True)


def _product_with_values(walker: Walker, softmax: Node, inside: set[Node]) -> Node:
    pattern = softmax
    path: list[Node] = []
    while True:
        users = [user for user in pattern.users if user in inside]
        if len(users) != 1:
            raise Mismatch(f"the attention pattern {pattern.name} is read {len(users)} times")
        if users[0].target in _PRODUCTS and users[0].args[0] is pattern:
            _check_order(walker, softmax, path)
            return users[0]
        if users[0].target not in SHAPE_OPS and users[0].target not in _CASTS:
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


def _without_mask(walker: Walker, add: Node) -> Node:
    scores, mask = cast(tuple[Node, Node], add.args[:2])
    if not walker.carries_data(scores):
        scores, mask = mask, scores
    _check_mask(walker, mask)
    return scores


def _check_mask(walker: Walker, mask: object) -> None:
    """A mask that hides nothing is no mask; others (windows, relative positions) are not in the dialect."""
    if mask is None:
        return
    value = walker.constant(mask)
    if value is None:
        raise Mismatch("the attention mask is computed from the image")
    if not bool(value.all() if value.dtype == torch.bool else (value == 0).all()):
        raise Mismatch("the attention has a mask or a position bias")


def _source(walker: Walker, norm: Node, end: Node, *, transposed: bool = False) -> _Source:
    """Which rows of which projection are head h's channel i, checked for every image and token."""
    trail = walker.trail(end)
    linear = trail.start
    weight, bias = walker.weights(linear)
    before = walker.trail(cast(Node, linear.args[0]))
    if before.start is not norm or before.factor != 1.0:
        raise Mismatch(f"{linear.name} does not read the normalised stream")
    batch, tokens, width = walker.values[norm].shape
    positions = rows_of(walker.indices(before, element_ids(walker.values[norm].shape)), width, linear.name)
    ids = walker.indices(trail, element_ids(walker.values[linear].shape))
    if transposed:
        ids = ids.transpose(-2, -1)
    ids = ids.reshape(-1, *ids.shape[-2:])
    channels = ids % weight.shape[0]
    places = positions.flatten()[ids // weight.shape[0]]
    image, token = places // tokens, places % tokens
    if ids.shape[1] != tokens or not torch.equal(token, torch.arange(tokens)[None, :, None].expand_as(token)):
        raise Mismatch("attention does not run over all tokens of one image")
    by_image = [channels[image[:, 0, 0] == index] for index in range(batch)]
    rows = by_image[0][:, 0]
    if not torch.equal(image, image[:, :1, :1].expand_as(image)) or any(
        not torch.equal(chosen, rows[:, None].expand(-1, tokens, -1)) for chosen in by_image
    ):
        raise Mismatch("heads differ from image to image or from token to token")
    return _Source(weight, bias, rows, image[:, 0, 0], trail.factor)


def _output(
    walker: Walker, core: _Core, images: Tensor, result: Node, shape: tuple[int, int, int]
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """(columns (H, d) of the out-projection that read head h's channel i, its weight, its bias, the gains after it)."""
    after = walker.trail(result, gains=True)
    linear = after.start
    weight, bias = walker.weights(linear)
    before = walker.trail(cast(Node, linear.args[0]))
    if before.start is not core.result or before.factor != 1.0:
        raise Mismatch(f"{linear.name} does not read the attention's result unchanged")
    columns, places = _columns(walker, core, images, before, shape)
    ids = walker.indices(after, element_ids(walker.values[linear].shape))
    rows = rows_of(ids, shape[-1], "the residual add")
    expected = torch.arange(shape[0] * shape[1])
    if rows.shape != torch.Size(shape[:2]) or not torch.equal(places[rows.flatten()], expected):
        raise Mismatch("the projection's tokens are not in the stream's order")
    return columns, weight, bias, after.gains(weight)


def _columns(
    walker: Walker, core: _Core, images: Tensor, before: Trail, shape: tuple[int, int, int]
) -> tuple[Tensor, Tensor]:
    """(columns (H, d), the stream position of each row of the projection's input)."""
    batch, tokens, _ = shape
    result_shape = walker.values[core.result].shape
    value_dim = result_shape[-1]
    ids = walker.indices(before, element_ids(result_shape))
    ids = ids.reshape(-1, ids.shape[-1])
    lead, token, channel = ids // (tokens * value_dim), ids // value_dim % tokens, ids % value_dim
    heads = result_shape.numel() // (batch * tokens * value_dim)
    # The product keeps its leading axes, so that v's layout tells which image and head a leading index is.
    image = images[lead]
    head_of = torch.zeros_like(images)
    for index in range(batch):
        head_of[images == index] = torch.arange(heads)
    unit = head_of[lead] * value_dim + channel
    if (
        ids.shape[-1] != heads * value_dim
        or not torch.equal(unit, unit[:1].expand_as(unit))
        or not torch.equal(image, image[:, :1].expand_as(image))
        or not torch.equal(token, token[:, :1].expand_as(token))
    ):
        raise Mismatch("the heads' results are not laid side by side for the projection")
    return torch.argsort(unit[0]).reshape(heads, value_dim), image[:, 0] * tokens + token[:, 0]

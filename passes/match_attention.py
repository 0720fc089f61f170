"""Recognising multi-head self-attention by its structure: softmax(scale · q kᵀ + bias) v between linear projections.

Fused or separate q, k, v, any order of axes, SDPA or written out (matmul, softmax, matmul), norms and rotations of
queries and keys, position biases, LayerScale or a factor behind the projection. The answer is a dialect `Attention`
whose parameters are copies, so weights that are shared with another part of the model are left alone.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.fx import Node

from passes.attention_core import AttentionCore, HeadNorm, InnerNorm
from passes.dialect import Attention
from passes.layout import Mismatch, Trail, Walker, element_ids, rows_of
from passes.match_core import Core, find_core
from passes.match_source import Source, common_order, find_source
from passes.match_transforms import Normalisation, find_inner_norm
from passes.rotary import Rotary


def match_attention(walker: Walker, norm: Node, result: Node) -> Attention:
    """The Attention that computes `result` from the normalised stream `norm`. Raises Mismatch, saying why not."""
    core = find_core(walker, norm, result)
    batch, tokens, width = walker.stream(norm).shape
    q, k, v = _sources(walker, norm, core)
    columns, weight, bias, gains, inner_norm = output_of(walker, core, v.images, result, (batch, tokens, width))
    if columns.shape != v.rows.shape:
        raise Mismatch("the projection does not read every head's channels exactly once")
    position_bias = _position_bias(walker, core, q.images)
    order, group = _groups(k, v)
    if group > 1:
        q, k, v, columns = q.of_heads(order), k.of_heads(order[::group]), v.of_heads(order[::group]), columns[order]
        position_bias = position_bias if position_bias is None or len(position_bias) == 1 else position_bias[order]
    biases, out_bias = (q.bias is not None, k.bias is not None, v.bias is not None), None if bias is None else (width,)
    settings = {"group": group}
    module = Attention(width, len(k.rows), q.rows.shape[1], v.rows.shape[1], 1.0, biases, out_bias, settings)
    module.core = _core(q, k, core.scale * q.factor * k.factor, position_bias, group)
    if inner_norm is not None:
        module.core.out_norm = _out_norm(inner_norm, columns.flatten())
        if v.factor != 1.0:
            raise Mismatch("values are scaled before a norm of the heads' outputs")
    module = module.to(weight.dtype)
    weight = weight[:, columns.flatten()] * v.factor
    with torch.no_grad():
        for linear, source in ((module.q, q), (module.k, k), (module.v, v)):
            fill(linear, source)
        module.out.weight.copy_(weight * gains[:, None])
        if module.out.bias is not None and bias is not None:
            module.out.bias.copy_(bias * gains)
    return module


def _sources(walker: Walker, norm: Node, core: Core) -> tuple[Source, Source, Source]:
    """Queries, keys and values, of as many heads each. Raises Mismatch."""
    q = find_source(walker, norm, core.q)
    k = find_source(walker, norm, core.k, transposed=core.k_transposed).repeated(core.group)
    v = find_source(walker, norm, core.v).repeated(core.group)
    if not (torch.equal(q.images, v.images) and torch.equal(k.images, v.images)):
        raise Mismatch("queries, keys and values come in different orders of images and heads")
    if k.rows.shape != q.rows.shape or len(v.rows) != len(q.rows):
        shapes = [f"{part.rows.shape[0]} heads of {part.rows.shape[1]}" for part in (q, k, v)]
        raise Mismatch(f"queries are {shapes[0]} channels, keys {shapes[1]}, values {shapes[2]}")
    if v.norm is not None or v.partner is not None:
        raise Mismatch("values are normalised or turned")
    q, k = common_order(q, k)
    return q, k, v


def _groups(k: Source, v: Source) -> tuple[Tensor, int]:
    """An order of the queries in which those that share a key and a value are neighbours, and how many do: 1 where
    each has its own."""
    _, place, counts = torch.cat([k.rows, v.rows], dim=1).unique(dim=0, return_inverse=True, return_counts=True)
    group = int(counts[0])
    alike = k.cos is None or len(k.cos) == 1
    if not alike or not bool((counts == group).all()):
        return torch.arange(len(place)), 1
    return place.argsort(stable=True), group


def fill(linear: nn.Linear, source: Source) -> None:
    """Copies the source's rows, head by head, into the projection."""
    rows = source.rows.flatten()
    linear.weight.copy_(source.weight[rows])
    if source.bias is not None:
        linear.bias.copy_(source.bias[rows])


def _core(q: Source, k: Source, scale: float, bias: Tensor | None, group: int) -> AttentionCore:
    core = AttentionCore(scale, head_norm(q.norm), head_norm(k.norm), rotary_of(q), rotary_of(k), group=group)
    core.position_bias = None if bias is None else nn.Parameter(bias.clone())
    return core


def _out_norm(norm: Normalisation, order: Tensor) -> InnerNorm:
    """order: of the heads' channels among those that the norm sees."""
    scale, shift = (None if value is None else value[order] for value in (norm.weight, norm.bias))
    return InnerNorm.of(norm.kind, norm.eps, scale, shift)


def head_norm(normalisation: Normalisation | None) -> HeadNorm | None:
    """The dialect's norm of single heads."""
    if normalisation is None:
        return None
    return HeadNorm.of(normalisation.kind, normalisation.eps, normalisation.weight, normalisation.bias)


def rotary_of(source: Source) -> Rotary | None:
    """The dialect's rotary positions, where the source turns."""
    return None if source.cos is None or source.sin is None else Rotary.of(source.cos, source.sin)


def _position_bias(walker: Walker, core: Core, images: Tensor) -> Tensor | None:
    """(H or 1, T, T): what is added to the scores, where it is the same for every image."""
    if core.bias is None:
        return None
    tokens = core.bias.shape[-2:]
    leading = walker.values[core.q].shape[:-2]
    whole = core.bias.expand(*leading, *tokens).reshape(-1, *tokens)
    first = whole[images == 0]
    if any(not torch.equal(whole[images == image], first) for image in images.unique().tolist()):
        raise Mismatch("the attention's bias differs from image to image")
    return first[:1] if torch.equal(first, first[:1].expand_as(first)) else first


def output_of(
    walker: Walker, core: Core, images: Tensor, result: Node, shape: tuple[int, int, int]
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, Normalisation | None]:
    """(columns (H, d) of the out-projection that read head h's channel i, its weight, its bias, the gains after it, the
    norm before it)."""
    after = walker.trail(result, gains=True)
    linear = after.start
    weight, bias = walker.weights(linear)
    joined, inner_norm = find_inner_norm(walker, core.result, cast(Node, linear.args[0]))
    before = walker.trail(joined)
    if before.start is not core.result or before.factor != 1.0:
        raise Mismatch(f"{linear.name} does not read the attention's result unchanged")
    columns, places = _columns(walker, core, images, before, shape)
    ids = walker.indices(after, element_ids(walker.values[linear].shape))
    rows = rows_of(ids, shape[-1], "the residual add")
    rows = rows.T if walker.tokens_first else rows
    expected = torch.arange(shape[0] * shape[1])
    if rows.shape != torch.Size(shape[:2]) or not torch.equal(places[rows.flatten()], expected):
        raise Mismatch("the projection's tokens are not in the stream's order")
    return columns, weight, bias, after.gains(weight), inner_norm


def _columns(
    walker: Walker, core: Core, images: Tensor, before: Trail, shape: tuple[int, int, int]
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

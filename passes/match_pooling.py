"""Recognising attention pooling: the queries are the same for every image, keys and values are read from the stream."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import Node

from passes.layout import Mismatch, Walker
from passes.match_attention import fill, head_norm, output_of, rotary_of
from passes.match_core import find_core
from passes.match_source import find_source
from passes.match_transforms import in_halves
from passes.pooled_attention import PooledAttention


def match_pooling(walker: Walker, norm: Node, result: Node) -> PooledAttention:
    """The PooledAttention that computes `result` (batch, n, D) from the normalised stream. Raises Mismatch."""
    core = find_core(walker, norm, result)
    query = walker.constant(core.q)
    if query is None:
        raise Mismatch("it replaces the stream by an attention whose queries are computed from the image")
    if core.bias is not None:
        raise Mismatch("the attention that pools the stream has a position bias")
    k = find_source(walker, norm, core.k, transposed=core.k_transposed)
    v = find_source(walker, norm, core.v)
    batch, _, width = walker.stream(norm).shape
    shape = (batch, query.shape[-2], width)
    if walker.stream(result).shape != torch.Size(shape):
        raise Mismatch(f"{result.name} is not one token of the stream's width for each query")
    columns, weight, bias, gains, inner_norm = output_of(walker, core, v.images, result, shape)
    if inner_norm is not None:
        raise Mismatch("the attention that pools the stream has a norm behind its heads")
    heads, head_dim = k.rows.shape
    if not torch.equal(k.images, v.images) or v.rows.shape != columns.shape:
        raise Mismatch("keys, values and the projection come in different orders of images and heads")
    if v.norm is not None or v.partner is not None:
        raise Mismatch("values are normalised or turned")
    learnt = _same_for_every_image(query, k.images, heads)
    if k.partner is not None:
        order = in_halves(k.partner)
        k, learnt = k.in_order(order), learnt[..., order]
    biases, out_bias = (k.bias is not None, v.bias is not None), None if bias is None else (width,)
    module = PooledAttention(width, heads, head_dim, v.rows.shape[1], shape[1], 1.0, biases, out_bias).to(weight.dtype)
    module.core.scale = core.scale * k.factor
    module.core.k_norm, module.core.k_rotary = head_norm(k.norm), rotary_of(k)
    with torch.no_grad():
        module.query = nn.Parameter(learnt.clone())
        fill(module.k, k)
        fill(module.v, v)
        module.out.weight.copy_(weight[:, columns.flatten()] * v.factor * gains[:, None])
        if module.out.bias is not None and bias is not None:
            module.out.bias.copy_(bias * gains)
    return module


def _same_for_every_image(query: Tensor, images: Tensor, heads: int) -> Tensor:
    """(leading axes, n, d) of images and heads -> (H, n, d)."""
    whole = query.reshape(-1, *query.shape[-2:])
    if len(whole) != len(images):
        # One for all images.
        whole = whole.repeat(len(images) // len(whole), 1, 1)
    first = whole[images == 0]
    if len(first) != heads or any(not torch.equal(whole[images == image], first) for image in images.unique().tolist()):
        raise Mismatch("the queries that pool the stream differ from image to image")
    return first

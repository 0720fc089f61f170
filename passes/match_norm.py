"""Recognising the norm between the stream and a sublayer: LayerNorm or RMSNorm, one operator or written out, or one of
them on another."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.fx import Node

from passes.aten import aten, backward_slice, cut_points
from passes.attention_core import LAYER, RMS
from passes.layout import Mismatch, Walker
from passes.match_transforms import Normalisation, find_normalisation
from passes.norms import Norm, NormOnNorm, SingleNorm

_FARTHEST = 6
"""Nodes that all of a sublayer passes, of which one may be the end of its norm."""


def match_norm(walker: Walker, stream: Node, branch: Node) -> tuple[Node, Norm]:
    """The node that is the normalised stream, which everything in the sublayer reads, and its norm. Raises Mismatch."""
    node, first = match_single_norm(walker, stream, branch)
    second = find_norm(walker, node, branch)
    if second is None:
        return node, first
    return second[0], NormOnNorm(first, _module(second[1], walker.values[node]))


def match_single_norm(walker: Walker, stream: Node, branch: Node) -> tuple[Node, SingleNorm]:
    """The same, of the first norm alone. Raises Mismatch."""
    matched = find_norm(walker, stream, branch)
    if matched is None:
        raise Mismatch(_why_none(_readers(walker, stream, branch)))
    return matched[0], _module(matched[1], walker.values[stream])


def _readers(walker: Walker, stream: Node, branch: Node) -> list[Node]:
    inside = set(backward_slice(branch, stream))
    return [user for user in stream.users if user in inside and walker.carries_data(user)]


def find_norm(walker: Walker, stream: Node, branch: Node) -> tuple[Node, Normalisation] | None:
    """The node that is the normalised stream, which everything up to `branch` reads, and its norm; None without one."""
    readers = _readers(walker, stream, branch)
    if len(readers) == 1 and readers[0].target is aten.layer_norm.default:
        _, weight, bias, eps = walker.norm_parameters(readers[0])
        return readers[0], Normalisation(LAYER, eps, weight, bias)
    inside = set(backward_slice(branch, stream))
    cuts = cut_points([stream, *(node for node in walker.data if node in inside)])
    matched: tuple[Node, Normalisation] | None = None
    for node in cuts[1 : 1 + _FARTHEST]:
        if getattr(walker.values[node], "shape", None) == walker.values[stream].shape:
            normalisation = find_normalisation(walker, stream, node, (LAYER, RMS))
            if normalisation is None and matched is not None:
                break
            matched = matched if normalisation is None else (node, normalisation)
    return matched


def _why_none(readers: Sequence[Node]) -> str:
    bare = [reader for reader in readers if reader.target is not aten.layer_norm.default]
    if bare:
        return f"{bare[0].name} ({bare[0].target}) reads the stream with no LayerNorm before it"
    return (
        f"{len(readers)} LayerNorms read the stream for one sublayer ({', '.join(reader.name for reader in readers)})"
    )


def _module(normalisation: Normalisation, stream: torch.Tensor) -> SingleNorm:
    width, affine = stream.shape[-1], normalisation.weight is not None
    norm: SingleNorm
    if normalisation.kind == RMS:
        if normalisation.bias is not None:
            raise Mismatch("the stream's RMSNorm has a shift")
        norm = nn.RMSNorm(width, eps=normalisation.eps, elementwise_affine=affine)
    elif normalisation.bias is not None and not affine:
        raise Mismatch("the stream's LayerNorm has a shift and no scale")
    else:
        norm = nn.LayerNorm(
            width, eps=normalisation.eps, elementwise_affine=affine, bias=normalisation.bias is not None
        )
    with torch.no_grad():
        if normalisation.weight is not None:
            norm.weight.copy_(normalisation.weight)
        if normalisation.bias is not None and isinstance(norm, nn.LayerNorm):
            norm.bias.copy_(normalisation.bias)
    return norm.to(stream.dtype)

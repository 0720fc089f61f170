"""What stands between a projection and the attention product: norms and rotations of single heads, told by experiment.

A stretch of a traced graph from one node to another of the same shape is run again with inputs of our own. Where it is
linear in each position's channels and mixes pairs of them, it is a rotation, whatever the code looks like; where it
gives the values of a norm, it is that norm. Nothing is believed that random inputs do not confirm.

Shapes: P positions (images, heads, tokens, in any order), d channels of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import Node

from passes.aten import aten, backward_slice, cut_points, run_between
from passes.attention_core import LAYER, RMS, normalised
from passes.layout import Mismatch, Walker

_FARTHEST = 6
"""Nodes that a norm of inner channels has, at most."""
_EPSILONS = (0.0, 1e-5, 1e-6, 1e-8, 1e-12)


@dataclass(frozen=True)
class Normalisation:
    """x -> normalised(x, kind, eps) · weight + bias, over the last axis; weight and bias are (d,) or absent."""

    kind: str
    eps: float
    weight: Tensor | None = None
    bias: Tensor | None = None


@dataclass(frozen=True)
class Rotation:
    """x -> x ⊙ cos + x[..., partner] ⊙ sin, the tables in the shape of x; partner: int64 (d,), its own inverse."""

    cos: Tensor
    sin: Tensor
    partner: Tensor


def find_normalisation(walker: Walker, start: Node, end: Node, kinds: tuple[str, ...]) -> Normalisation | None:
    """The norm over the last axis that makes `end` of `start`, if one does. kinds: those to try."""
    stretch = [node for node in backward_slice(end, start) if node is not start]
    before, after = walker.values[start], walker.values[end]
    if before.shape != after.shape or not any(node.target in NORM_PARTS for node in stretch):
        return None
    if any(node.target is aten.linear.default for node in stretch):
        return None
    # Small inputs tell an ε from another.
    small = before * 1e-2
    there = run_between(start, end, small, walker.values)
    for kind in kinds:
        for eps in _numbers(stretch):
            for weight, bias in _affine(walker, stretch, before.shape[-1]):
                candidate = Normalisation(kind, eps, weight, bias)
                if _same(_apply(candidate, before), after) and _same(_apply(candidate, small), there):
                    return candidate
    return None


def find_inner_norm(walker: Walker, start: Node, end: Node) -> tuple[Node, Normalisation | None]:
    """What of a sublayer's inner channels, `end`, is before a norm of them all, and that norm; `end` where none is.

    start: the normalised stream.
    """
    inside = set(backward_slice(end, start))
    cuts = cut_points([start, *(node for node in walker.data if node in inside)])
    for before in reversed(cuts[1:-1][-_FARTHEST:]):
        if getattr(walker.values[before], "shape", None) != walker.values[end].shape:
            return end, None
        normalisation = find_normalisation(walker, before, end, (LAYER, RMS))
        if normalisation is not None:
            return before, normalisation
    return end, None


def _apply(norm: Normalisation, x: Tensor) -> Tensor:
    result = normalised(x, norm.kind, norm.eps)
    result = result if norm.weight is None else result * norm.weight
    return result if norm.bias is None else result + norm.bias


NORM_PARTS = frozenset(
    {
        aten.layer_norm.default,
        aten.rms_norm.default,
        aten.rsqrt.default,
        aten.sqrt.default,
        aten.linalg_vector_norm.default,
        aten.norm.ScalarOpt_dim,
        aten.var.correction,
        aten.reciprocal.default,
    }
)


def _numbers(stretch: list[Node]) -> Iterator[float]:
    """What may be ε: numbers among the stretch's arguments, then the usual ones."""
    given = [
        float(value)
        for node in stretch
        for value in (*node.args, *node.kwargs.values())
        if isinstance(value, float) and 0 <= value < 1e-2
    ]
    # F.rms_norm's own default is the type's.
    yield from dict.fromkeys([*given, *_EPSILONS, torch.finfo(torch.float32).eps, torch.finfo(torch.float64).eps])


def _affine(walker: Walker, stretch: list[Node], width: int) -> Iterator[tuple[Tensor | None, Tensor | None]]:
    """Scales and shifts to try: pairs of the stretch's own vectors of `width` numbers."""
    sources = {source: None for node in stretch for source in node.all_input_nodes}
    constants = [walker.constant(source) for source in sources]
    vectors = [value.flatten() for value in constants if value is not None and value.numel() == width > 1]
    yield None, None
    for weight in vectors:
        yield weight, None
    for weight in vectors:
        for bias in vectors:
            if bias is not weight:
                yield weight, bias


def find_rotation(walker: Walker, start: Node, end: Node) -> Rotation:
    """The rotation of channel pairs that makes `end` of `start`. Raises Mismatch, saying what it is not."""
    before = walker.values[start]
    width = before.shape[-1]

    def run(x: Tensor) -> Tensor:
        return run_between(start, end, x, walker.values)

    name = f"{end.name} ({end.target})"
    if before.shape != walker.values[end].shape or before.dtype != walker.values[end].dtype:
        raise Mismatch(f"{name} changes queries or keys in a way that is neither a norm nor a rotation")
    matrix = torch.empty(*before.shape, width, dtype=before.dtype)
    for channel in range(width):
        basis = torch.zeros_like(before)
        basis[..., channel] = 1
        matrix[..., channel] = run(basis)
    cos, off = matrix.diagonal(dim1=-2, dim2=-1), matrix.clone()
    off.diagonal(dim1=-2, dim2=-1).zero_()
    strength = off.abs().flatten(0, -3).amax(dim=0)
    partner = _partners(strength)
    if partner is None:
        raise Mismatch(f"{name} mixes the channels of queries or keys otherwise than in pairs")
    sin = off.gather(-1, partner.view(*[1] * (off.dim() - 2), -1, 1).expand(*off.shape[:-1], 1)).squeeze(-1)
    rotation = Rotation(cos.contiguous(), sin.contiguous(), partner)
    probe = torch.randn(before.shape, generator=torch.Generator().manual_seed(0), dtype=before.dtype)
    if not _same(probe * rotation.cos + probe[..., partner] * rotation.sin, run(probe)):
        raise Mismatch(f"{name} mixes tokens or is not linear in queries or keys")
    return rotation


def _partners(strength: Tensor) -> Tensor | None:
    """(d, d), how much channel i reads of channel j anywhere -> the pairs; channels that do not turn are paired among
    themselves. None where a channel reads two others, or is left over."""
    width = len(strength)
    partner = torch.arange(width)
    for channel, row in enumerate(strength):
        others = row.nonzero().flatten().tolist()
        if len(others) > 1:
            return None
        if others:
            partner[channel] = others[0]
    turning = (partner != torch.arange(width)).nonzero().flatten()
    for channel in turning.tolist():
        mate = int(partner[channel])
        # One of a pair may turn by nothing at all.
        if partner[mate] == mate:
            partner[mate] = channel
    if not torch.equal(partner[partner], torch.arange(width)):
        return None
    still = (partner == torch.arange(width)).nonzero().flatten().tolist()
    if len(still) % 2:
        return None
    half = len(still) // 2
    for channel, mate in zip(still[:half], still[half:], strict=True):
        partner[channel], partner[mate] = mate, channel
    return partner


def in_halves(partner: Tensor) -> Tensor:
    """The order of channels in which i and i + d/2 are a pair."""
    first = [channel for channel, mate in enumerate(partner.tolist()) if channel < mate]
    return torch.tensor([*first, *partner[first].tolist()])


def _same(ours: Tensor, theirs: Tensor) -> bool:
    tolerance = 1e-5 if theirs.dtype == torch.float32 else 1e-11
    return bool((ours - theirs).abs().max() <= tolerance * theirs.abs().max())

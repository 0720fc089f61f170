"""Finding where queries, keys or values come from: which rows of which projection, and what is done to them after it.

Fused or separate projections, any order of axes, norms over a head's channels, rotary positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import cast

import torch
from torch import Tensor
from torch.fx import Node

from passes.aten import SHAPE_OPS, aten, backward_slice, cut_points, replay
from passes.attention_core import NORMS
from passes.layout import Mismatch, Walker, element_ids, rows_of
from passes.match_core import CASTS
from passes.match_transforms import Normalisation, Rotation, find_normalisation, find_rotation, in_halves

_FARTHEST = 5
"""Stretches of a norm that is written out, at most."""


@dataclass
class Source:
    """One of q, k, v: its projection, the rows of its weight by head (H, d), and the image of each leading index.

    factor: what multiplies it. norm, and cos and sin (H or 1, T, d): what is done to it before the product.
    """

    weight: Tensor
    bias: Tensor | None
    rows: Tensor
    images: Tensor
    factor: float
    norm: Normalisation | None = None
    partner: Tensor | None = None
    cos: Tensor | None = None
    sin: Tensor | None = None

    def repeated(self, count: int) -> Source:
        """Each head `count` times in a row."""
        heads = len(self.rows)
        chosen = torch.arange(heads).repeat_interleave(count)
        images = self.images.repeat_interleave(count)
        return replace(self.of_heads(chosen), images=images) if count > 1 and heads else self

    def of_heads(self, heads: Tensor) -> Source:
        """The source of these heads of every image, in this order."""
        cos, sin = (table if table is None or len(table) == 1 else table[heads] for table in (self.cos, self.sin))
        return replace(self, rows=self.rows[heads], cos=cos, sin=sin)

    def in_order(self, order: Tensor) -> Source:
        """The same with each head's channels in another order."""
        norm = self.norm
        if norm is not None:
            weight, bias = (None if value is None else value[order] for value in (norm.weight, norm.bias))
            norm = replace(norm, weight=weight, bias=bias)
        cos, sin = (None if table is None else table[..., order] for table in (self.cos, self.sin))
        return replace(self, rows=self.rows[:, order], norm=norm, cos=cos, sin=sin)


@dataclass
class _Route:
    """From a projection to the product: shape operators (nodes), norms and rotations, in their order."""

    linear: Node
    steps: list[Node | Normalisation | Rotation] = field(default_factory=list)
    factor: float = 1.0

    def push(self, walker: Walker, seed: Tensor, start: int = 0) -> Tensor:
        """What the shape operators from step `start` on make of a tensor: transforms leave every element its place."""
        return self._replayed(walker, seed, self.steps[start:])

    def push_to(self, walker: Walker, seed: Tensor, stop: int) -> Tensor:
        """The same up to step `stop`."""
        return self._replayed(walker, seed, self.steps[:stop])

    @staticmethod
    def _replayed(walker: Walker, seed: Tensor, steps: Sequence[Node | Normalisation | Rotation]) -> Tensor:
        path = [step for step in steps if isinstance(step, Node)]
        result = replay(path, seed, walker.values)
        if not isinstance(result, Tensor):
            raise Mismatch(f"{path[-1].name} gives several tensors where one was expected")
        return result


def find_source(walker: Walker, norm: Node, end: Node, *, transposed: bool = False) -> Source:
    """Which rows of which projection are head h's channel i, checked for every image and token.

    norm: the normalised stream. end: what the product reads; transposed: its last axes are swapped. Raises Mismatch.
    """
    route = _route(walker, norm, end)
    linear = route.linear
    weight, bias = walker.weights(linear)
    before = walker.trail(cast(Node, linear.args[0]))
    if before.start is not norm or before.factor != 1.0:
        raise Mismatch(f"{linear.name} does not read the normalised stream")
    batch, tokens, width = walker.stream(norm).shape
    positions = rows_of(walker.indices(before, element_ids(walker.values[norm].shape)), width, linear.name)
    ids = _by_head(route.push(walker, element_ids(walker.values[linear].shape)), transposed)
    channels = ids % weight.shape[0]
    places = positions.flatten()[ids // weight.shape[0]]
    image, token = walker.image_and_token(places, norm)
    if ids.shape[1] != tokens or not torch.equal(token, torch.arange(tokens)[None, :, None].expand_as(token)):
        raise Mismatch("attention does not run over all tokens of one image")
    by_image = [channels[image[:, 0, 0] == number] for number in range(batch)]
    rows = by_image[0][:, 0]
    if not torch.equal(image, image[:, :1, :1].expand_as(image)) or any(
        not torch.equal(part, rows[:, None].expand(-1, tokens, -1)) for part in by_image
    ):
        raise Mismatch("heads differ from image to image or from token to token")
    source = Source(weight, bias, rows, image[:, 0, 0], route.factor)
    return _with_transforms(walker, route, source, transposed)


def _by_head(value: Tensor, transposed: bool) -> Tensor:
    """(leading axes, T, d), or with the last two swapped -> (L, T, d)."""
    value = value.transpose(-2, -1) if transposed else value
    return value.reshape(-1, *value.shape[-2:])


def _route(walker: Walker, norm: Node, end: Node) -> _Route:
    inside = set(backward_slice(end, norm))
    cuts = cut_points([norm, *(node for node in walker.data if node in inside)])
    steps: list[Node | Normalisation | Rotation] = []
    factor, at, gain = 1.0, len(cuts) - 1, None
    while at > 0:
        node = cuts[at]
        if node.target is aten.linear.default:
            if gain is not None:
                raise Mismatch(f"a gain of {gain.numel()} channels stands behind {node.name} with no norm before it")
            return _Route(node, steps[::-1], factor)
        step = walker.multiplication(node)
        if node.target in SHAPE_OPS:
            steps.append(node)
        elif node.target in CASTS and walker.values[node].dtype == walker.values[cuts[at - 1]].dtype:
            pass
        elif step is not None and step[1].numel() == 1:
            factor *= float(step[1])
        elif step is not None:
            gain = step[1].flatten() if gain is None else gain * step[1].flatten()
        else:
            back, transform = _transform(walker, cuts, at)
            if isinstance(transform, Normalisation) and gain is not None:
                weight, bias = transform.weight, transform.bias
                weight = gain if weight is None else weight * gain
                transform = replace(transform, weight=weight, bias=None if bias is None else bias * gain)
                gain = None
            steps.append(transform)
            at = back + 1
        at -= 1
    raise Mismatch(f"{cuts[1].name if len(cuts) > 1 else norm.name} reads the stream and is no linear projection")


def _transform(walker: Walker, cuts: list[Node], at: int) -> tuple[int, Normalisation | Rotation]:
    """What ends at this cut point, and the cut point where it begins."""
    end, shape = cuts[at], walker.values[cuts[at]].shape
    alike = [place for place in range(at - 1, 0, -1) if getattr(walker.values[cuts[place]], "shape", None) == shape]
    if not alike:
        raise Mismatch(f"{end.name} ({end.target}) stands where a linear projection was expected")
    for place in reversed(alike[:_FARTHEST]):
        normalisation = find_normalisation(walker, cuts[place], end, NORMS)
        if normalisation is not None:
            return place, normalisation
    return alike[0], find_rotation(walker, cuts[alike[0]], end)


def _with_transforms(walker: Walker, route: _Route, source: Source, transposed: bool) -> Source:
    """The source with its norm and its rotation, in the product's own axes."""
    head_dim = source.rows.shape[1]
    for place, step in enumerate(route.steps):
        if isinstance(step, Node):
            continue
        if isinstance(step, Normalisation):
            if source.norm is not None or source.partner is not None:
                raise Mismatch("queries or keys are normalised twice, or behind their rotation")
            norm_width = next((len(value) for value in (step.weight, step.bias) if value is not None), head_dim)
            _check_channels(walker, route, place, transposed, head_dim)
            if norm_width != head_dim:
                raise Mismatch(f"a norm over {norm_width} channels where a head has {head_dim}")
            source.norm = step
            continue
        if source.partner is not None:
            raise Mismatch("queries or keys are turned twice")
        _check_channels(walker, route, place, transposed, head_dim)
        source.partner = step.partner
        source.cos, source.sin = (
            _table(_by_head(route.push(walker, table, place + 1), transposed), source.images)
            for table in (step.cos, step.sin)
        )
    return source


def _check_channels(walker: Walker, route: _Route, place: int, transposed: bool, head_dim: int) -> None:
    """A transform works on the last axis, which must be a head's channels, in the order in which the product has
    them."""
    before = route.push_to(walker, element_ids(walker.values[route.linear].shape), place)
    if before.shape[-1] != head_dim:
        raise Mismatch(f"queries or keys are transformed over {before.shape[-1]} channels where a head has {head_dim}")
    channel = torch.arange(head_dim).expand(before.shape)
    after = _by_head(route.push(walker, channel.contiguous(), place + 1), transposed)
    if not torch.equal(after, torch.arange(head_dim).expand_as(after)):
        raise Mismatch("a head's channels are reordered behind a norm or a rotation")


def _table(value: Tensor, images: Tensor) -> Tensor:
    """(L, T, d), the same for every image -> (H or 1, T, d)."""
    first = value[images == 0]
    for image in images.unique().tolist():
        if not torch.equal(value[images == image], first):
            raise Mismatch("queries or keys are turned differently in different images")
    return first[:1] if torch.equal(first, first[:1].expand_as(first)) else first


def common_order(q: Source, k: Source) -> tuple[Source, Source]:
    """Queries and keys with their channels in the order in which i and i + d/2 turn together, where they turn."""
    partners = [source.partner for source in (q, k) if source.partner is not None]
    if not partners:
        return q, k
    if len(partners) == 2 and not torch.equal(*partners):
        raise Mismatch("queries and keys are turned in different pairs of channels")
    order = in_halves(partners[0])
    return q.in_order(order), k.in_order(order)

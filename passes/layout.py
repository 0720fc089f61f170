"""Learning a memory layout by pushing indices through it.

Between a projection and the attention product, models reshape, transpose, split and unbind as they please. Running
those very operators on an `arange` shows which image, token and channel every element of q, k or v was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from passes.aten import SHAPE_OPS, Values, aten, data_nodes, replay


class Mismatch(Exception):
    """A sublayer does not have the form looked for; the sentence says where it differs."""


@dataclass
class Trail:
    """How a node was made of `start`."""

    start: Node
    path: list[Node] = field(default_factory=list)  #: shape operators in order
    factor: float = 1.0
    gain: Tensor | None = None  #: (D,), a factor for each channel

    def gains(self, weight: Tensor) -> Tensor:
        """(D,): what multiplies each of the stream's D channels behind the projection with this weight (D, E)."""
        width = weight.shape[0]
        if self.gain is not None and self.gain.numel() != width:
            raise Mismatch(f"a gain of {self.gain.numel()} channels on a stream of {width}")
        return self.factor * (torch.ones(width) if self.gain is None else self.gain).to(weight)


class Walker:
    """Walks backwards through one sublayer of a traced graph whose values were recorded."""

    def __init__(self, graph_module: GraphModule, values: Values) -> None:
        self.graph_module = graph_module
        self.values = values
        self.tokens_first = False  #: whether the stream is (tokens, batch, width)
        self.data = data_nodes(graph_module)
        self._data = set(self.data)

    def carries_data(self, node: Node) -> bool:
        return node in self._data

    def stream(self, node: Node) -> Tensor:
        """A value of the stream's layout as (batch, tokens, width)."""
        value: Tensor = self.values[node]
        return value.transpose(0, 1) if self.tokens_first else value

    def image_and_token(self, places: Tensor, stream: Node) -> tuple[Tensor, Tensor]:
        """Of positions in the stream, which are numbered in its own layout."""
        batch, tokens, _ = self.stream(stream).shape
        if self.tokens_first:
            return places % batch, places // batch
        return places // tokens, places % tokens

    def constant(self, node: object) -> Tensor | None:
        """The value of what does not depend on the pixels, or None."""
        if isinstance(node, int | float):
            return torch.tensor(float(node), dtype=torch.float64)
        if not isinstance(node, Node) or self.carries_data(node):
            return None
        value = self.values[node]
        return value.detach() if isinstance(value, Tensor) else None

    def trail(self, end: Node, *, gains: bool = False) -> Trail:
        """Walks from `end` back through shape operators and multiplications with numbers (and gains, if wanted)."""
        path: list[Node] = []
        factor, gain, node = 1.0, None, end
        while True:
            if node.target in SHAPE_OPS:
                path.insert(0, node)
                node = node.all_input_nodes[0]
                continue
            step = self.multiplication(node)
            if step is None or (step[1].numel() > 1 and not gains):
                return Trail(node, path, factor, gain)
            node, value = step
            if value.numel() == 1:
                factor *= float(value)
            else:
                gain = value.flatten() if gain is None else gain * value.flatten()

    def multiplication(self, node: Node) -> tuple[Node, Tensor] | None:
        if node.target in (aten.mul.Tensor, aten.mul.Scalar):
            for source, other in (node.args[:2], node.args[1::-1]):
                value = self.constant(other)
                if isinstance(source, Node) and self.carries_data(source) and value is not None:
                    # A gain acts on the last axis alone; anything else is not a LayerScale.
                    last_axis_alone = value.numel() == 1 or value.numel() == value.shape[-1]
                    return (source, value) if last_axis_alone else None
        if node.target in (aten.div.Tensor, aten.div.Scalar) and isinstance(node.args[0], Node):
            value = self.constant(node.args[1])
            if value is not None and value.numel() == 1:
                return node.args[0], 1.0 / value
        return None

    def indices(self, trail: Trail, seed: Tensor) -> Tensor:
        """What the trail's shape operators make of a tensor of indices."""
        result = replay(trail.path, seed, self.values)
        if not isinstance(result, Tensor):
            raise Mismatch(f"{trail.path[-1].name} gives several tensors where one was expected")
        return result

    def weights(self, linear: Node) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of an aten.linear node, as plain tensors."""
        if linear.target is not aten.linear.default:
            raise Mismatch(f"{linear.name} ({linear.target}) stands where a linear projection was expected")
        weight = self.constant(linear.args[1])
        has_bias = len(linear.args) > 2 and linear.args[2] is not None
        bias = self.constant(linear.args[2]) if has_bias else None
        if weight is None or (has_bias and bias is None):
            raise Mismatch(f"the weights of {linear.name} are computed from the image")
        return weight, bias

    def norm_parameters(self, norm: Node) -> tuple[int, Tensor | None, Tensor | None, float]:
        """(width, weight, bias, ε) of an aten.layer_norm node over the last axis."""
        arguments = [*norm.args, None, None, None, None][:5]
        _, shape, weight, bias, eps = arguments
        if norm.target is not aten.layer_norm.default or len(shape) != 1:  # type: ignore[arg-type]
            raise Mismatch(f"{norm.name} ({norm.target}) is not a LayerNorm over the channels")
        scale, shift = self.constant(weight), self.constant(bias)
        if (isinstance(weight, Node) and scale is None) or (isinstance(bias, Node) and shift is None):
            raise Mismatch(f"the weights of {norm.name} are computed from the image")
        return int(shape[0]), scale, shift, 1e-5 if eps is None else float(eps)  # type: ignore[index, arg-type]


def element_ids(shape: torch.Size) -> Tensor:
    """int64 of `shape`, each element its own number in row-major order."""
    return torch.arange(math.prod(shape)).reshape(shape)


def rows_of(ids: Tensor, channels: int, reader: str) -> Tensor:
    """The row (position) numbers of an id tensor (..., channels) whose last axis still is the channels, in order.

    Raises Mismatch where shape operators mixed channels with positions.
    """
    if ids.shape[-1] != channels or not torch.equal(ids % channels, torch.arange(channels).expand_as(ids)):
        raise Mismatch(f"the layout before {reader} mixes channels and tokens")
    rows = ids // channels
    if not torch.equal(rows, rows[..., :1].expand_as(rows)):
        raise Mismatch(f"the layout before {reader} mixes channels and tokens")
    return rows[..., 0]

"""A canonical graph as a list of stages along the residual stream, and what runs of single stages share.

Shapes: N images, T tokens, D width, E inner channels of a sublayer, H heads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.functional import pad

from passes.dialect import AddConstant, Sublayer
from passes.plan import channels_of
from passes.pooled_attention import PooledAttention
from passes.stream import module_of, read_sites

Reference = Mapping[str, Tensor]
"""What stands in for a removed writer: for each sublayer its inner channels, for "embed" the stream, broadcastable to
(N, T, E). Constants have no axis for images; `resample` has the corrupted run's own value for each image."""

_KEPT = 2**28
"""Numbers at most that `KeptBatches` keeps, a GiB of float32."""


@dataclass(frozen=True)
class Stage:
    """One step along the stream: x + sublayer(norm(x)), or, where nothing is prunable, module(x).

    An attention that an MLP stands beside `forks` the stream, and the MLP `joins` it again: between them it is twice as
    wide, (N, T, 2D), the sum first and then what the MLP reads.
    """

    name: str  #: the sublayer's or the module's name in the graph
    module: nn.Module
    norm: nn.Module | None = None  #: of a sublayer: what it reads the stream through
    carry: nn.Module | None = None  #: of a pooling: what it makes of the stream to add to; None: the stream itself
    forks: bool = False
    joins: bool = False

    @property
    def sublayer(self) -> Sublayer | None:
        return self.module if isinstance(self.module, Sublayer) else None

    @property
    def reads_unseen(self) -> bool:
        """An unrecognised step or a pooling, which reads the stream in ways that the edge graph can't take apart."""
        return self.carry is not None or (self.norm is None and not isinstance(self.module, AddConstant))

    def inner(self, stream: Tensor, module: Sublayer | None = None) -> Tensor:
        """(N, T, D) -> the sublayer's inner channels (N, T, E), or those of another module in its place."""
        module = self.sublayer if module is None else module
        assert module is not None and self.norm is not None
        return module.inner(self.norm(self.read(stream)))

    def read(self, stream: Tensor) -> Tensor:
        """What the norm reads, (N, T, D)."""
        return stream.chunk(2, dim=-1)[1] if self.joins else stream

    def target(self, stream: Tensor, *, forked: bool) -> Tensor:
        """Of the stream before the stage, what the sublayer before it should make: what this one reads, or the sum,
        where that sublayer forked the stream."""
        return self.carried(stream) if self.joins and forked else self.read(stream)

    def carried(self, stream: Tensor) -> Tensor:
        """What goes on past the sublayer: the stream, or a fresh one."""
        if self.joins:
            return stream.chunk(2, dim=-1)[0]
        carried: Tensor = stream if self.carry is None else self.carry(stream)
        return carried

    def forked(self, total: Tensor, carried: Tensor) -> Tensor:
        """The stream behind the sublayer, from its sum and what that one added to, (N, T, D)."""
        return torch.cat([total, carried], dim=-1) if self.forks else total

    def behind(self, stream: Tensor, inner: Tensor) -> Tensor:
        """The stream behind the sublayer, from the one before it and its inner channels."""
        assert self.sublayer is not None
        carried = self.carried(stream)
        return self.forked(carried + self.sublayer.out(inner), carried)

    def __call__(self, stream: Tensor) -> Tensor:
        if self.sublayer is not None:
            return self.behind(stream, self.inner(stream))
        result: Tensor = self.module(stream)
        return result


@dataclass
class Reading:
    """A stage with the stream that it reads. What it makes of that is computed once, when it is first asked for. A
    caller may set any of these values before later stages run."""

    stage: Stage
    stream: Tensor
    batch: int | None = None  #: images computed at a time, to save memory; None: all

    @cached_property
    def inner(self) -> Tensor:
        """The sublayer's inner channels (N, T, E)."""
        if self.batch is not None:
            return in_batches(self.stage.inner, self.stream, self.batch)
        return self.stage.inner(self.stream)

    @cached_property
    def behind(self) -> Tensor:
        """The stream behind the stage; behind the last one, the logits."""
        if self.batch is not None:
            return in_batches(self.stage, self.stream, self.batch)
        return self.stage(self.stream) if self.stage.sublayer is None else self.stage.behind(self.stream, self.inner)


def streams_at(stages: Iterable[Stage], stream: Tensor, batch: int | None = None) -> Iterator[Reading]:
    """Runs the stages one after another, from the images (N, C, H, W) or a stream, and gives each with what it reads.

    A stage runs after the caller has looked at its reading, in the caller's gradient mode.
    """
    for stage in stages:
        reading = Reading(stage, stream, batch)
        yield reading
        stream = reading.behind


def run_stages(stages: Iterable[Stage], stream: Tensor) -> Tensor:
    """The stream behind the last of the stages."""
    for stage in stages:
        stream = stage(stream)
    return stream


def onto(stream: Tensor, change: Tensor) -> Tensor:
    """The stream with a change (…, D) of what a sublayer adds to it; one that forks also holds what an MLP reads."""
    return stream + pad(change, (0, stream.shape[-1] - change.shape[-1]))


class KeptBatches:
    """Batches of a value that is read twice, say a sublayer's inner channels: computed once as far as memory is spared,
    and once more for each reading beyond that."""

    def __init__(self, function: Callable[[Any], Any], inputs: Sequence[Any]) -> None:
        """function: gives a tensor, or a tuple that begins with one."""
        self._function, self._inputs = function, inputs
        self._kept: list[Any] = []

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(self._inputs):
            if number < len(self._kept):
                yield self._kept[number]
                continue
            value = self._function(batch)
            size = (value[0] if isinstance(value, tuple) else value).numel()
            if number == len(self._kept) and (number + 1) * size <= _KEPT:
                self._kept.append(value)
            yield value


def in_batches(function: Callable[[Tensor], Tensor], stream: Tensor, size: int) -> Tensor:
    """The function's value for all images, computed for `size` of them at a time."""
    return torch.cat([function(images) for images in stream.split(size)])


def sublayers_of(stages: Iterable[Stage]) -> dict[str, Sublayer]:
    """The prunable sublayers by name, in the order of the stream."""
    return {stage.name: stage.sublayer for stage in stages if stage.sublayer is not None}


def read_stages(graph_module: GraphModule) -> list[Stage]:
    """A canonical graph as the list of its stages."""
    sites = {site.add: site for site in read_sites(graph_module)}
    inside = {node for site in sites.values() for node in site.inside}
    joined = {site.beside for site in sites.values()}
    stages = []
    for node in graph_module.graph.nodes:
        if node in sites:
            site = sites[node]
            carry = module_of(graph_module, site.carried) if isinstance(site.module, PooledAttention) else None
            norm, forks = module_of(graph_module, site.norm), site.beside is not None
            stages.append(Stage(site.name, site.module, norm, carry, forks=forks, joins=node in joined))
        elif node.op == "call_module" and node not in inside:
            module = module_of(graph_module, node)
            assert module is not None
            stages.append(Stage(str(node.target), module))
    return stages


def replaced(stage: Stage, inner: Tensor, units: Sequence[int], reference: Tensor) -> Tensor:
    """A copy of the inner channels (N, T, E) with those of `units` taken from the reference."""
    assert stage.sublayer is not None
    channels = channels_of(sorted(units), stage.sublayer.channels).to(inner.device)
    result = inner.clone()
    result[..., channels] = reference.to(inner)[..., channels].expand(*inner.shape[:-1], -1)
    return result


def contribution(module: Sublayer, units: Sequence[int], inner: Tensor, *, double: bool = False) -> Tensor:
    """What these units add to the stream, without the bias: inner (..., E) -> (..., D), in the weights' type."""
    weight = module.out.weight.double() if double else module.out.weight
    channels = channels_of(units, module.channels).to(weight.device)
    return inner[..., channels].to(weight) @ weight[:, channels].T


def project_heads(linear: nn.Linear, heads: int, inputs: Tensor, chosen: Sequence[int] | None = None) -> Tensor:
    """A projection's rows of each head, applied to that head's own input: (H, N, T, D) -> (N, H, T, channels).

    heads: how many the projection has.
    chosen: the heads that the inputs belong to; None where they are all of them, in order.
    """
    count, images, tokens, width = inputs.shape
    weight = linear.weight.reshape(heads, -1, width)
    bias = None if linear.bias is None else linear.bias.reshape(heads, 1, -1)
    if chosen is not None and list(chosen) != list(range(heads)):
        index = torch.tensor(list(chosen), device=weight.device)
        weight, bias = weight[index], None if bias is None else bias[index]
    projected = inputs.reshape(count, images * tokens, width) @ weight.transpose(1, 2)
    if bias is not None:
        projected = projected + bias
    return projected.reshape(count, images, tokens, -1).transpose(0, 1)


def of_images(reference: Tensor, images: slice | Tensor) -> Tensor:
    """The part of a reference that stands for these images: all of it, unless it has an axis for them."""
    return reference[images] if reference.dim() == 3 else reference

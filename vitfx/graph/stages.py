"""A canonical graph as a list of stages along the residual stream, and what runs of single stages have in common.

Shapes: N images, T tokens, D width, E inner channels of a sublayer, H heads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from passes.dialect import AddConstant, Attention, Sublayer
from passes.plan import channels_of
from passes.stream import module_of, read_sites

Reference = Mapping[str, Tensor]
"""What stands in for a removed writer: for each sublayer its inner channels, for "embed" the stream, broadcastable to
(N, T, E). Constants have no axis for images; `resample` has the corrupted run's own value for each image."""


@dataclass(frozen=True)
class Stage:
    """One step along the stream: x + sublayer(norm(x)), or, where nothing is prunable, module(x)."""

    name: str
    module: nn.Module
    norm: nn.Module | None = None

    @property
    def sublayer(self) -> Sublayer | None:
        return self.module if isinstance(self.module, Sublayer) else None

    @property
    def reads_unseen(self) -> bool:
        """An unrecognised step: it reads the stream in ways that the edge graph does not take apart."""
        return self.norm is None and not isinstance(self.module, AddConstant)

    def inner(self, stream: Tensor, module: Sublayer | None = None) -> Tensor:
        """(N, T, D) -> the sublayer's inner channels (N, T, E), or those of another module in its place."""
        module = self.sublayer if module is None else module
        assert module is not None and self.norm is not None
        return module.inner(self.norm(stream))

    def carried(self, stream: Tensor) -> Tensor:
        """What of the stream goes on past the sublayer: all of it."""
        return stream

    def __call__(self, stream: Tensor) -> Tensor:
        if self.sublayer is None:
            return self.module(stream)
        return self.carried(stream) + self.sublayer.out(self.inner(stream))


def read_stages(graph_module: GraphModule) -> list[Stage]:
    """A canonical graph as the list of its stages."""
    sites = {site.add: site for site in read_sites(graph_module)}
    inside = {node for site in sites.values() for node in (site.norm, site.node)}
    stages = []
    for node in graph_module.graph.nodes:
        if node in sites:
            site = sites[node]
            stages.append(Stage(site.name, site.module, module_of(graph_module, site.norm)))
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
    """Rows of a projection on each head's own input: (H, N, T, D) -> (N, H, T, channels).

    heads: all that the projection has. chosen: those that the inputs are of, where they are not all.
    """
    count, images, tokens, width = inputs.shape
    weight = linear.weight.unflatten(0, (heads, -1))
    bias = None if linear.bias is None else linear.bias.unflatten(0, (heads, 1, -1))
    if chosen is not None and list(chosen) != list(range(heads)):
        index = torch.tensor(list(chosen), device=weight.device)
        weight, bias = weight[index], None if bias is None else bias[index]
    found = inputs.reshape(count, images * tokens, width) @ weight.transpose(1, 2)
    if bias is not None:
        found = found + bias
    return found.unflatten(1, (images, tokens)).transpose(0, 1)


def attend(module: Attention, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(N, H, T, channels) each, q of as many tokens as are wanted -> heads' outputs (N, T of q, H · channels)."""
    return module.core(q, k, v)


def of_images(reference: Tensor, images: slice | Tensor) -> Tensor:
    """The part of a reference that stands for these images: all of it, unless it has an axis for them."""
    return reference[images] if reference.dim() == 3 else reference

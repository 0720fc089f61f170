"""Runs a canonical graph with any set of writers ablated.

The head graph: writers are the embedding, each head and each MLP path, each with its one edge into the residual stream.
The embedding is the stream that the first prunable sublayer reads: what was not recognised before that is part of it.
Its number of edges is 1 + Σ heads + Σ paths; for 12 layers of 6 heads and 8 paths, 1 + 12·6 + 12·8 = 169.

Shapes: N images, T tokens, D width, E inner channels of a sublayer.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

from passes.dialect import Sublayer
from passes.plan import channels_of
from passes.stream import module_of, read_sites
from vitfx.circuit import EMBED, Writer

Paths = Mapping[str, Sequence[Sequence[int]]]
"""The hidden neurons of each path, for each MLP by name."""


@dataclass(frozen=True)
class Stage:
    """One step along the stream: x + sublayer(norm(x)), or, where nothing is prunable, module(x)."""

    name: str
    module: nn.Module
    norm: nn.Module | None = None

    @property
    def sublayer(self) -> Sublayer | None:
        return self.module if isinstance(self.module, Sublayer) else None

    def inner(self, stream: Tensor) -> Tensor:
        """(N, T, D) -> the sublayer's inner channels (N, T, E)."""
        assert isinstance(self.module, Sublayer) and self.norm is not None
        return self.module.inner(self.norm(stream))

    def __call__(self, stream: Tensor) -> Tensor:
        return self.module(stream) if self.norm is None else stream + self.module(self.norm(stream))


Reference = Mapping[str, Tensor]
"""What stands in for a removed writer: for each sublayer its inner channels, for "embed" the stream, broadcastable to
(N, T, E). Constants have no axis for images; `resample` has the corrupted run's own value for each image."""


class EdgeGraph:
    """The oracle of the head graph. Nothing is deleted: every run computes everything and then replaces it."""

    def __init__(self, graph_module: GraphModule, paths: Paths) -> None:
        """paths: for every MLP, groups that hold each of its neurons once; raises ValueError otherwise."""
        self.stages = read_stages(graph_module)
        self.first = next(index for index, stage in enumerate(self.stages) if stage.norm is not None)
        self.writers = (Writer(EMBED), *self._sublayer_writers(paths))

    def _sublayer_writers(self, paths: Paths) -> list[Writer]:
        writers = []
        for stage in self.stages:
            module = stage.sublayer
            if module is None:
                continue
            groups = paths[stage.name] if module.kind == "neuron" else [[head] for head in range(module.units)]
            if sorted(unit for group in groups for unit in group) != list(range(module.units)):
                raise ValueError(f"the paths of {stage.name} do not hold each of its {module.units} neurons once")
            writers += [Writer(stage.name, index, tuple(sorted(group))) for index, group in enumerate(groups)]
        return writers

    def run(self, pixels: Tensor, removed: Collection[Writer] = (), reference: Reference | None = None) -> Tensor:
        """(N, C, H, W) -> logits (N, K) with the removed writers replaced by their reference."""
        gone: dict[str, list[int]] = {}
        for writer in removed:
            gone.setdefault(writer.sublayer, []).extend(writer.units)
        stream = pixels
        for index, stage in enumerate(self.stages):
            if index == self.first and EMBED in gone:
                stream = _reference(reference, EMBED).to(stream).expand_as(stream)
            if stage.name in gone and stage.sublayer is not None:
                inner = replaced(stage, stage.inner(stream), gone[stage.name], _reference(reference, stage.name))
                stream = stream + stage.sublayer.out(inner)
            else:
                stream = stage(stream)
        return stream

    def streams(self, pixels: Tensor) -> list[Tensor]:
        """The whole model's input to each stage, and its logits last."""
        found = [pixels]
        for stage in self.stages:
            found.append(stage(found[-1]))
        return found


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


def _reference(reference: Reference | None, name: str) -> Tensor:
    if reference is None or name not in reference:
        raise ValueError(f"writers of {name} are removed, but there is no reference for it")
    return reference[name]


def kl_divergence(logits: Tensor, other: Tensor) -> Tensor:
    """D_KL(softmax(logits) ‖ softmax(other)) for each image, float64 (N,), in nats. Below zero by rounding alone."""
    ours, theirs = (F.log_softmax(one.double(), dim=-1) for one in (logits, other))
    return torch.sum(ours.exp() * (ours - theirs), dim=-1)

"""What a canonical graph costs, and what it will cost once a plan is carried out: parameters and FLOPs per image.

FLOPs are counted as is usual for ViTs in torch: two for each multiply-accumulate of matrix products and convolutions,
none for elementwise operators (norms, activations, softmax, biases).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch.fx import GraphModule
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from passes.delete_units import left_behind
from passes.dialect import AddConstant, Heads, Sublayer
from passes.merging import MergeTokens
from passes.plan import DeletionPlan
from passes.pooled_attention import FreshTokens, PooledAttention
from passes.stream import module_of, read_sites


@dataclass(frozen=True)
class Cost:
    """What a canonical graph costs, and what it has left to prune."""

    parameters: int
    flops: int  #: for one image
    heads: int
    neurons: int
    sublayers: int


def measure_cost(graph_module: GraphModule, image: torch.Size) -> Cost:
    """Counts on the graph itself; FLOPs by running one image of shape (C, H, W) under torch's counter."""
    weight = next(graph_module.parameters())
    pixels = torch.zeros(1, *image, dtype=weight.dtype, device=weight.device)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        graph_module(pixels)
    modules = [site.module for site in read_sites(graph_module)]
    return Cost(
        sum(parameter.numel() for parameter in graph_module.parameters()),
        counter.get_total_flops(),
        sum(module.units for module in modules if module.kind == "head"),
        sum(module.units for module in modules if module.kind == "neuron"),
        len(modules),
    )


def predict_cost(graph_module: GraphModule, plan: DeletionPlan, before: Cost, tokens: int) -> Cost:
    """What `measure_cost` must find after the plan: worked out from shapes alone, without rewriting anything."""
    sites = {site.name: site for site in read_sites(graph_module)}
    counts = tokens_at(graph_module, tokens)
    parameters, flops = before.parameters, before.flops
    for deletion in plan.deletions:
        module = sites[deletion.name].module
        parameters -= len(deletion.units) * unit_parameters(module)
        flops -= len(deletion.units) * unit_flops(module, counts[deletion.name])
        if deletion.whole:
            norm = module_of(graph_module, sites[deletion.name].norm)
            parameters -= sum(parameter.numel() for parameter in norm.parameters()) if norm is not None else 0
            parameters -= shared_parameters(module)
    parameters += _bias_growth(graph_module, plan)
    gone = [deletion for deletion in plan.deletions if deletion.whole]
    return Cost(
        parameters,
        flops,
        before.heads - sum(len(deletion.units) for deletion in plan.of_kind("head").values()),
        before.neurons - sum(len(deletion.units) for deletion in plan.of_kind("neuron").values()),
        before.sublayers - len(gone),
    )


def unit_parameters(module: Sublayer) -> int:
    """Parameters that go with one head or one neuron."""
    width = module.out.weight.shape[0]
    own = module.core.head_parameters(module.units) if isinstance(module, Heads) else 0
    own += module.query.numel() // module.units if isinstance(module, PooledAttention) else 0
    own += _inner_norm_parameters(module) // module.units
    for linear in module.linears:
        own += linear.out_features // module.units * (width + (linear.bias is not None))
    return own + module.channels * width


def shared_parameters(module: Sublayer) -> int:
    """Parameters of a sublayer that belong to all of its units together, but for the projection's bias."""
    if not isinstance(module, Heads):
        return 0
    heads = module.units * module.core.head_parameters(module.units)
    return sum(parameter.numel() for parameter in module.core.parameters()) - heads - _inner_norm_parameters(module)


def _inner_norm_parameters(module: Sublayer) -> int:
    return 0 if module.inner_norm is None else sum(parameter.numel() for parameter in module.inner_norm.parameters())


def unit_flops(module: Sublayer, tokens: int) -> int:
    """FLOPs per image that go with one head or one neuron. tokens: of the stream that the sublayer reads."""
    width = module.out.weight.shape[0]
    written = module.queries if isinstance(module, PooledAttention) else tokens
    read = sum(linear.out_features // module.units for linear in module.linears)
    scores = module.core.group * module.head_dim + module.channels if isinstance(module, Heads) else 0
    return 2 * width * (tokens * read + written * module.channels) + 2 * written * tokens * scores


def tokens_read_by(sublayers: Mapping[str, Sublayer], tokens: int) -> dict[str, int]:
    """How many tokens the stream has where each sublayer reads it: behind a pooling, as many as that has queries.

    sublayers: in the order of the stream. tokens: where the stream begins.
    """
    counts = {}
    for name, module in sublayers.items():
        counts[name] = tokens
        tokens = module.queries if isinstance(module, PooledAttention) else tokens
    return counts


def tokens_at(graph_module: GraphModule, tokens: int) -> dict[str, int]:
    """The same in a graph in which tokens may merge: they are fewer behind each merge, and all again for a pooling."""
    sites = read_sites(graph_module)
    counts, merged = tokens_read_by({site.name: site.module for site in sites}, tokens), 0
    beside = 0  # tokens that merge behind the MLP beside an attention
    for site in sites:
        if not isinstance(site.module, PooledAttention):
            counts[site.name] -= merged
        merge = None if site.merge is None else module_of(graph_module, site.merge)
        merged, beside = merged + beside, merge.merged if isinstance(merge, MergeTokens) else 0
        if site.beside is None:
            merged, beside = merged + beside, 0
    return counts


def _bias_growth(graph_module: GraphModule, plan: DeletionPlan) -> int:
    """By how much the parameters that carry constants grow: walks the stream as folding does, with shapes alone."""
    deleted = {deletion.name: deletion for deletion in plan.deletions}
    sites = {site.node: site for site in read_sites(graph_module)}
    refitted = {refit.name for refit in plan.refits}
    growth = 0
    carrier: int | None = None  # elements of the bias or table that the next constant goes into
    waiting: list[torch.Tensor] = []  # what an attention leaves behind the MLP beside it
    for node in graph_module.graph.nodes:
        module = module_of(graph_module, node)
        if isinstance(module, AddConstant):
            carrier = module.value.numel()
        elif isinstance(module, GraphModule | FreshTokens):
            carrier = None
        if node not in sites:
            continue
        out, deletion = sites[node].module.out, deleted.get(sites[node].name)
        bias = 0 if out.bias is None else out.bias.numel()
        left = None if deletion is None else left_behind(sites[node].module, deletion)
        if deletion is not None and deletion.whole:
            growth -= bias
        else:
            carrier = bias
            if sites[node].name in refitted and not bias:
                carrier = out.weight.shape[0]
                growth += carrier
        waiting += [] if left is None else [left]
        while waiting and sites[node].beside is None:
            needed = max(carrier or 0, waiting.pop().numel())
            growth += needed - (carrier or 0)
            carrier = needed
    return growth

"""Behind the last attention, only the tokens that the logits read are computed.

With a class token's classifier that is the class token alone: one query of 65 in the last attention, one row of its
projection, of the MLP and of the norms.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from passes.base import Pass, PassResult
from passes.deployment import NarrowedAttention, TakeTokens
from passes.dialect import Attention
from passes.merging import RestoreTokens
from passes.stream import Site, module_of, read_sites, undo_merge
from passes.token_use import by_token, cut_tokens, tokens_read


@dataclass(frozen=True)
class _Region:
    """From the last attention to the logits."""

    site: Site  #: the last attention
    nodes: list[Node]  #: behind it, those that work token by token
    tail: nn.Sequential  #: the rest, up to the logits


class NarrowToCls(Pass):
    """Requires a canonical graph or what exact rewrites made of one. A changed result is not canonical.

    Nothing is narrowed where the logits read all tokens, as with average pooling, or others than the first few.

    example: pixels (2 or more, C, H, W), for the stream's shape.
    """

    def __init__(self, example: Tensor) -> None:
        self.example = example

    def rewrite(self, graph_module: GraphModule) -> PassResult:
        if any(isinstance(module, TakeTokens) for module in graph_module.modules()):
            return PassResult(graph_module, False, ("the graph is narrowed already",))
        if any(isinstance(module, RestoreTokens) for module in graph_module.modules()):
            return PassResult(graph_module, False, ("the logits read all tokens",))
        region = _region(graph_module)
        if region is None:
            return PassResult(graph_module, False, ("it has no attention with a classifier behind it",))
        stream = _stream_before(graph_module, region, self.example)
        count, why_not = _count(region.tail, stream)
        if why_not:
            return PassResult(graph_module, False, (why_not,))
        _narrow(graph_module, region, count, stream.shape[1])
        note = f"behind {region.site.name} {count} of {stream.shape[1]} tokens"
        return PassResult(graph_module, True, (note,))


def _region(graph_module: GraphModule) -> _Region | None:
    """Of the last attention that is recognised, if behind it only the classifier mixes tokens."""
    sites = read_sites(graph_module)
    attentions = [site for site in sites if isinstance(site.module, Attention)]
    if not attentions:
        return None
    after = list(graph_module.graph.nodes)
    after = after[after.index(attentions[-1].add) + 1 :]
    merge = attentions[-1].merge
    after = [node for node in after if merge is None or node not in (merge, *merge.users)]
    inside = {node for site in sites for node in (site.norm, site.node, site.add)}
    end = next(
        (
            index
            for index, node in enumerate(after)
            if node not in inside and not by_token(module_of(graph_module, node))
        ),
        len(after),
    )
    tail = [module_of(graph_module, node) for node in after[end:] if node.op != "output"]
    if not tail or not all(isinstance(module, nn.Module) for module in tail):
        return None
    return _Region(attentions[-1], after[:end], nn.Sequential(*(module for module in tail if module is not None)))


@torch.no_grad()
def _stream_before(graph_module: GraphModule, region: _Region, example: Tensor) -> Tensor:
    """The stream (B, T, D) that the last attention adds to."""
    weight = region.site.module.out.weight
    kept: list[Tensor] = []
    norm = module_of(graph_module, region.site.norm)
    assert norm is not None
    with norm.register_forward_pre_hook(lambda _, args: kept.append(args[0])):
        graph_module(example.to(weight))
    return kept[0]


def _count(tail: nn.Module, stream: Tensor) -> tuple[int, str]:
    """How many tokens are read, and the reason why the others can't be left out, or ""."""
    read = tokens_read(tail, stream)
    count = len(read)
    if count == stream.shape[1]:
        return count, "the logits read all tokens"
    if read != tuple(range(count)):
        return count, f"the logits read {count} of {stream.shape[1]} tokens, which are not the first"
    with torch.no_grad():
        probe = torch.randn(stream.shape, generator=torch.Generator().manual_seed(0)).to(stream)
        try:
            narrow, whole = tail(probe[:, :count]), tail(probe)
        except (RuntimeError, IndexError):
            return count, "the classifier fixes the number of tokens that it takes"
    same = narrow.shape == whole.shape and torch.allclose(narrow, whole, rtol=1e-5, atol=1e-6)
    return count, "" if same else "the classifier counts its tokens from the end"


def _narrow(graph_module: GraphModule, region: _Region, count: int, whole: int) -> None:
    site, tokens = region.site, torch.arange(count)
    if site.merge is not None:
        undo_merge(site)  # Of the tokens that are left, none merges.
    old = site.module
    assert isinstance(old, Attention)
    graph_module.set_submodule(site.name, NarrowedAttention(cut_tokens(old, tokens), count, whole))
    for node in region.nodes:
        module = module_of(graph_module, node)
        if module is not None:
            graph_module.set_submodule(str(node.target), cut_tokens(module, tokens))
    name = f"{site.name}_tokens"
    graph_module.add_submodule(name, TakeTokens(count))
    with graph_module.graph.inserting_before(site.add):
        taken = graph_module.graph.create_node("call_module", name, (site.stream,), name=name)
    for node in (site.add, *region.nodes):
        node.replace_input_with(site.stream, taken)

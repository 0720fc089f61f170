"""Tokens merge between attention and MLP where a schedule says; behind each merge, attention knows the sizes.

Classifiers that read the protected tokens alone read them as before. For all others (average and attention pooling,
dense answers) each token is restored first as what it has become, which weighs an average by the groups' sizes.
"""

from __future__ import annotations

import operator
import re
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import Argument

from passes.base import Pass, PassError, PassResult
from passes.dialect import AddConstant, Attention
from passes.merging import MergeTokens, RestoreTokens
from passes.mlp import Neurons
from passes.stream import Site, is_canonical, module_of, read_sites, undo_merge
from passes.token_schedule import TokenCounts, TokenSchedule
from passes.token_use import by_token, tokens_read


class MergeBySchedule(Pass):
    """Requires a canonical graph in which no tokens merge, or those of this schedule; ensures a canonical graph.

    Where a block's attention is deleted, its tokens merge behind the one before it, or else the first one that is left:
    keys are what tokens are compared by.

    example: pixels (2 or more, C, H, W), for the stream's shape.
    """

    requires = (is_canonical,)
    ensures = (is_canonical,)

    def __init__(self, schedule: TokenSchedule, example: Tensor) -> None:
        self.schedule, self.example = schedule, example

    def rewrite(self, graph_module: GraphModule) -> PassResult:
        merges = _by_site(graph_module, self.schedule)
        if before := schedule_of(graph_module):
            if _by_site(graph_module, before) != merges:
                raise PassError(f"tokens merge already, by the schedule {before}: undo that first")
            return PassResult(graph_module, False, (f"tokens merge already by {before}",))
        if not merges:
            return PassResult(graph_module, False)
        merging = _Merging(graph_module, self.example)
        merging.check(merges)
        notes = merging.insert(merges)
        return PassResult(graph_module, True, tuple(notes))


class UndoMerges(Pass):
    """Takes the merges out again: the canonical graph from which `MergeBySchedule` made this one."""

    requires = (is_canonical,)
    ensures = (is_canonical,)

    def rewrite(self, graph_module: GraphModule) -> PassResult:
        for node in graph_module.graph.nodes:
            if isinstance(module_of(graph_module, node), RestoreTokens):
                node.replace_all_uses_with(node.all_input_nodes[0])
                graph_module.graph.erase_node(node)
        merged = [site for site in read_sites(graph_module) if site.merge is not None]
        for site in reversed(read_sites(graph_module)):
            site.node.kwargs = {name: value for name, value in site.node.kwargs.items() if name == "keys"}
            if site.merge is not None:
                undo_merge(site)
        return PassResult(graph_module, bool(merged))


@torch.no_grad()
def token_counts(graph_module: GraphModule, example: Tensor) -> TokenCounts:
    """What a canonical graph has to merge; where tokens merge already, what it had. example: as above."""
    embedded = _embedded(graph_module, example)
    names = [int(match[1]) for site in read_sites(graph_module) if (match := re.fullmatch(r"[am]([0-9]+)", site.name))]
    return TokenCounts(max(names, default=-1) + 1, embedded.shape[1], _protected(graph_module, embedded))


def schedule_of(graph_module: GraphModule) -> TokenSchedule:
    """By which tokens merge in the graph."""
    merges = []
    for node in graph_module.graph.nodes:
        module = module_of(graph_module, node)
        if isinstance(module, MergeTokens):
            merges.append((int(str(node.target)[1:]), module.merged))
    return TokenSchedule(tuple(merges))


def _by_site(graph_module: GraphModule, schedule: TokenSchedule) -> dict[str, int]:
    """Tokens that merge behind each attention."""
    sites = [site for site in read_sites(graph_module) if isinstance(site.module, Attention)]
    numbers = {int(site.name[1:]): site.name for site in sites if re.fullmatch("a[0-9]+", site.name)}
    if schedule and not numbers:
        raise PassError("no attention is left by whose keys tokens could be compared: merge none")
    merges: dict[str, int] = {}
    for block, merged in schedule.merges:
        before = max((number for number in numbers if number <= block), default=min(numbers))
        merges[numbers[before]] = merges.get(numbers[before], 0) + merged
    return merges


@dataclass(frozen=True)
class _Beside:
    """What goes beside the stream behind a merge."""

    parts: dict[str, Argument]  #: sizes, groups and positions by name, as merges take them

    def of_attention(self, module: Attention) -> dict[str, Argument]:
        """What attention takes of them."""
        names = {"sizes", *(["positions"] if _turns(module) else [])}
        return {name: node for name, node in self.parts.items() if name in names}


class _Merging:
    """Inserts merges into one graph."""

    def __init__(self, graph_module: GraphModule, example: Tensor) -> None:
        self.graph_module = graph_module
        self.sites = read_sites(graph_module)
        embedded = _embedded(graph_module, example)
        self.protected, self.free = _protected(graph_module, embedded), embedded.shape[1]
        self.free -= self.protected
        self.tail = _behind(graph_module, self._end())
        self.turns = any(isinstance(site.module, Attention) and _turns(site.module) for site in self.sites)
        self.restores = not _reads_first(graph_module, self.tail, embedded, self.protected)

    def _end(self) -> Node:
        """Where the last sublayer that reads merged tokens ends: behind it, tokens are restored."""
        return [site for site in self.sites if isinstance(site.module, Attention | Neurons)][-1].add

    def check(self, merges: dict[str, int]) -> None:
        """Raises PassError for what can't merge, or can't stand behind a merge."""
        free, merged = self.free, False
        for site in self.sites:
            module = site.module
            if merged and isinstance(module, Attention):
                core = module.core
                if core.position_bias is not None:
                    raise PassError(f"{site.name} has a position bias, a number for each pair of tokens: {_LATER}")
            if merged and module.out.bias is not None and module.out.bias.dim() == 2 and site.add in self._before_end():
                raise PassError(f"{site.name} has a bias for each token: {_LATER}")
            if site.name in merges:
                if merges[site.name] > free // 2:
                    raise PassError(
                        f"behind {site.name} {merges[site.name]} tokens are to merge, but of the {free} that may, at "
                        f"most half can: give {free // 2} or fewer"
                    )
                free -= merges[site.name]
                merged = True
        self._check_between(merges)

    def _before_end(self) -> list[Node]:
        nodes = list(self.graph_module.graph.nodes)
        return nodes[: nodes.index(self._end()) + 1]

    def _check_between(self, merges: dict[str, int]) -> None:
        """Raises PassError where something unknown reads merged tokens."""
        inside = {node for site in self.sites for node in (site.add, *site.inside)}
        nodes = self._before_end()
        first = next(site.end for site in self.sites if site.name in merges)
        for node in nodes[nodes.index(first) + 1 :]:
            module = module_of(self.graph_module, node)
            if node in inside:
                continue
            if isinstance(module, AddConstant) and module.value.dim() == 2:
                raise PassError(f"{node.name} adds a constant to each token: {_LATER}")
            if not by_token(module):
                raise PassError(f"{node.name} is not recognised and may need all tokens: {_LATER}")

    def insert(self, merges: dict[str, int]) -> list[str]:
        beside: _Beside | None = None
        notes, free = [], self.free
        stream = self._end()
        for site in self.sites:
            if beside is not None and isinstance(site.module, Attention):
                site.node.kwargs = beside.of_attention(site.module)
            if site.name in merges:
                stream_behind, beside = self._insert(site, merges[site.name], beside)
                stream = stream_behind if site.end is stream else stream
                free -= merges[site.name]
                notes.append(f"behind {site.name} {self.protected + free} tokens are left")
        if self.restores:
            assert beside is not None
            self.graph_module.add_submodule("restore", RestoreTokens())
            graph, groups = self.graph_module.graph, cast(Node, beside.parts["groups"])
            with graph.inserting_after(max(stream, groups, key=list(graph.nodes).index)):
                node = graph.create_node("call_module", "restore", (stream, groups), name="restore")
            stream.replace_all_uses_with(node, delete_user_cb=lambda user: user is not node)
        self.graph_module.graph.eliminate_dead_code()
        return notes

    def _insert(self, site: Site, merged: int, beside: _Beside | None) -> tuple[Node, _Beside]:
        graph, name = self.graph_module.graph, f"t{site.name[1:]}"
        site.node.kwargs = {**site.node.kwargs, "keys": True}
        added, keys = self._parts(site.node, f"{site.name}_added", f"{site.name}_keys")
        site.add.replace_input_with(site.node, added)
        module = MergeTokens(self.protected, merged, tracks=self.restores, turns=self.turns)
        self.graph_module.add_submodule(name, module)
        before = {} if beside is None else dict(beside.parts)
        with graph.inserting_after(site.end):
            node = graph.create_node("call_module", name, (site.end, keys), before, name=name)
        names = ("sizes", *(["groups"] if self.restores else []), *(["positions"] if self.turns else []))
        stream, *others = self._parts(node, f"{name}_stream", *(f"{name}_{part}" for part in names))
        site.end.replace_all_uses_with(stream, delete_user_cb=lambda user: user is not node)
        return stream, _Beside(dict(zip(names, others, strict=True)))

    def _parts(self, node: Node, *names: str) -> list[Node]:
        """The parts of a node's result."""
        parts, graph = [node], self.graph_module.graph
        for index, name in enumerate(names):
            with graph.inserting_after(parts[-1]):
                parts.append(graph.create_node("call_function", operator.getitem, (node, index), name=name))
        return parts[1:]


def _turns(module: Attention) -> bool:
    return module.core.q_rotary is not None or module.core.k_rotary is not None


_LATER = "tokens can't merge before it, merge them later, or not at all"


def _embedded(graph_module: GraphModule, example: Tensor) -> Tensor:
    """The stream (2, T, D) of two images of noise before the first sublayer."""
    weight, sites = next(graph_module.parameters()), read_sites(graph_module)
    if not sites:
        raise PassError("the model has no sublayer that is recognised: its tokens can't merge")
    kept: list[Tensor] = []
    norm = module_of(graph_module, sites[0].norm)
    assert norm is not None
    noise = torch.randn((2, *example.shape[1:]), generator=torch.Generator().manual_seed(0)).to(weight)
    with norm.register_forward_pre_hook(lambda _, args: kept.append(args[0])):
        graph_module(noise)
    return kept[0]


def _protected(graph_module: GraphModule, embedded: Tensor) -> int:
    """How many tokens at the beginning never merge: those that no pixel reaches, and those that alone are read."""
    fixed = (embedded[0] == embedded[1]).all(-1).nonzero().flatten().tolist()
    if fixed != list(range(len(fixed))):
        raise PassError(
            f"of its {embedded.shape[1]} tokens, {len(fixed)} hold no part of the image, and they are not the first: "
            "tokens can't merge"
        )
    return len(fixed)


def _behind(graph_module: GraphModule, end: Node) -> nn.Sequential | None:
    """What reads the tokens at the end; None where that is more than a chain of modules."""
    nodes = list(graph_module.graph.nodes)
    modules = [module_of(graph_module, node) for node in nodes[nodes.index(end) + 1 :] if node.op != "output"]
    known = [module for module in modules if module is not None]
    return nn.Sequential(*known) if len(known) == len(modules) else None


def _reads_first(graph_module: GraphModule, tail: nn.Sequential | None, embedded: Tensor, protected: int) -> bool:
    """Only protected tokens are read, wherever the others are."""
    if tail is None or not len(tail) or not protected:
        return False
    if any(isinstance(module, AddConstant) and module.value.dim() == 2 for module in tail):
        return False
    read = tokens_read(tail, embedded)
    if not read or max(read) >= protected:
        return False
    probe = torch.randn(embedded.shape, generator=torch.Generator().manual_seed(0)).to(embedded)
    try:
        fewer, whole = tail(probe[:, :protected]), tail(probe)
    except (RuntimeError, IndexError):
        return False
    return fewer.shape == whole.shape and torch.allclose(fewer, whole, rtol=1e-5, atol=1e-6)

"""Reading a canonical graph: the chain of its residual stream, and the prunable sublayers on it."""

from __future__ import annotations

import operator
from dataclasses import dataclass, replace

from torch import nn
from torch.fx import GraphModule, Node

from passes.base import PassError
from passes.dialect import AddConstant, Attention, Sublayer
from passes.merging import MergeTokens, RestoreTokens
from passes.mlp import Neurons
from passes.norms import NORMS
from passes.pooled_attention import FreshTokens, PooledAttention


@dataclass(frozen=True)
class Site:
    """Where a prunable sublayer stands: stream → norm → sublayer, and the sum of stream and sublayer.

    An MLP may stand beside an attention: it reads the stream that the attention reads, and adds to the attention's sum.
    """

    name: str  #: the module's in the graph, "a3" or "m3", which is also the name of its writers
    norm: Node
    node: Node  #: calls the sublayer
    add: Node  #: the sum
    module: Sublayer
    beside: Node | None = None  #: of an attention that an MLP stands beside: that one's sum

    @property
    def end(self) -> Node:
        """The sum behind which the stream goes on."""
        return self.add if self.beside is None else self.beside

    @property
    def stream(self) -> Node:
        """The residual stream that the sublayer reads."""
        return self.norm.all_input_nodes[0]

    @property
    def added(self) -> Node:
        """What the sublayer gives to the sum: the call's result, or the first part of it where it gives keys too."""
        return next((user for user in self.node.users if user.args[1:] == (0,)), self.node) if self.keyed else self.node

    @property
    def keyed(self) -> bool:
        """It also gives the keys by which tokens merge behind it, see `passes.merging`."""
        return bool(self.node.kwargs.get("keys"))

    @property
    def merge(self) -> Node | None:
        """The node that merges tokens behind it by its keys, if one does."""
        ends = [node for user in self.node.users for node in user.users if node is not self.add] if self.keyed else []
        return ends[0] if ends else None

    @property
    def carried(self) -> Node:
        """What the sublayer adds to: the stream that it reads, the sum of the attention beside it, or the fresh tokens
        of a pooling."""
        return next(node for node in self.add.all_input_nodes if node is not self.added)

    @property
    def inside(self) -> set[Node]:
        """The nodes between the stream and the sum."""
        fresh = {self.carried} if isinstance(self.module, PooledAttention) else set()
        return {self.norm, self.node, self.added, *fresh, *(self.node.users if self.keyed else ())}


def module_of(graph_module: GraphModule, node: Node) -> nn.Module | None:
    """The module that a node calls, or None for any other node."""
    return graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None


def read_sites(graph_module: GraphModule) -> list[Site]:
    """The prunable sublayers in the order of the stream.

    Raises PassError where a sublayer does not stand in the form norm → sublayer → add.
    """
    sites: list[Site] = []
    for node in graph_module.graph.nodes:
        module = module_of(graph_module, node)
        if not isinstance(module, Sublayer):
            continue
        norm = node.all_input_nodes[0]
        users = list(node.users)
        if node.kwargs.get("keys"):
            users = [user for part in node.users if part.args[1:] == (0,) for user in part.users]
        (add,) = users if len(users) == 1 else (None,)
        if not isinstance(module_of(graph_module, norm), NORMS):
            raise PassError(f"sublayer {node.target} reads {norm.name}, which is neither LayerNorm nor RMSNorm")
        if add is None or add.target is not operator.add:
            raise PassError(f"sublayer {node.target} is not read by a residual add alone")
        if len(norm.users) != 1:
            raise PassError(f"sublayer {node.target} does not read its LayerNorm {norm.name} alone")
        site = Site(str(node.target), norm, node, add, module)
        fresh = isinstance(module_of(graph_module, site.carried), FreshTokens)
        begins = site.carried.all_input_nodes[0] if fresh else site.carried
        if sites and _stands_beside(sites[-1], site):
            sites[-1] = replace(sites[-1], beside=add)
        elif begins is not site.stream or fresh is not isinstance(module, PooledAttention):
            raise PassError(f"sublayer {node.target} does not add to the stream that it reads")
        sites.append(site)
    return sites


def _stands_beside(attention: Site, mlp: Site) -> bool:
    kinds = isinstance(attention.module, Attention) and isinstance(mlp.module, Neurons)
    return kinds and mlp.carried is attention.add and mlp.stream is attention.stream


def is_canonical(graph_module: GraphModule) -> None:
    """Property: one input, one output, and between them one chain of modules and residual adds. Where tokens merge,
    their sizes, keys and groups go beside it.

    Raises PassError naming the first node that is out of place.
    """
    all_sites = read_sites(graph_module)
    sites = {site.end: site for site in all_sites}
    inside = {node for site in all_sites for node in (*site.inside, site.add)} - sites.keys()
    nodes = list(graph_module.graph.nodes)
    placeholders = [node for node in nodes if node.op == "placeholder"]
    if len(placeholders) != 1:
        raise PassError(f"a canonical graph has one input, this one has {len(placeholders)}")
    if nodes[0] is not placeholders[0]:
        raise PassError(f"node {nodes[0].name} stands before the input {placeholders[0].name}")
    current = placeholders[0]
    for node in nodes[1:]:
        if node in inside:
            continue
        if node in sites:
            reads = sites[node].stream
        elif is_merging(graph_module, node):
            reads = node.all_input_nodes[0]
        elif node.target is operator.getitem and is_merging(graph_module, node.all_input_nodes[0]):
            if node.args[1] != 0:
                continue
            reads = node.all_input_nodes[0]
        elif node.op in ("call_module", "output") and len(node.all_input_nodes) == 1:
            reads = node.all_input_nodes[0]
        else:
            raise PassError(f"node {node.name} ({node.op} {node.target}) is not part of the ViT dialect")
        if reads is not current:
            raise PassError(f"node {node.name} reads {reads.name} where the stream is {current.name}")
        current = node


def is_merging(graph_module: GraphModule, node: Node) -> bool:
    """The node merges tokens, or restores those that have merged."""
    return isinstance(module_of(graph_module, node), MergeTokens | RestoreTokens)


def constant_sites(graph_module: GraphModule) -> list[Node]:
    """The nodes that add a constant to the stream, in its order."""
    return [node for node in graph_module.graph.nodes if isinstance(module_of(graph_module, node), AddConstant)]


def undo_merge(site: Site) -> None:
    """Takes the merge behind a sublayer out again, whose sizes and groups nothing reads any more."""
    merge, added = site.merge, site.added
    assert merge is not None
    graph = merge.graph
    (stream,) = (user for user in merge.users if user.args[1:] == (0,))
    stream.replace_all_uses_with(site.end)
    for node in (*merge.users, merge):
        graph.erase_node(node)
    added.replace_all_uses_with(site.node)
    for node in list(site.node.users):
        if node is not site.add:
            graph.erase_node(node)
    site.node.kwargs = {name: value for name, value in site.node.kwargs.items() if name != "keys"}

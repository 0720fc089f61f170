"""Deletes what does nothing in a traced graph: assertions, dead code, copies, casts to the type that is there."""

from __future__ import annotations

from torch.fx import GraphModule, Node

from passes.aten import aten
from passes.base import Pass, PassResult

_ASSERTIONS = (aten._assert_tensor_metadata.default, aten._assert_async.msg, aten._assert_scalar.default)
_CASTS = (aten.to.dtype, aten.type_as.default)


class RemoveNoOps(Pass):
    """Requires a graph without in-place operators, as `vitfx.graph.trace.trace` gives it."""

    def rewrite(self, graph_module: GraphModule) -> PassResult:
        removed = 0
        for node in list(graph_module.graph.nodes):
            if node.target in _ASSERTIONS or (node.op == "call_module" and not node.users):
                graph_module.graph.erase_node(node)
                removed += 1
            elif _is_copy(node):
                node.replace_all_uses_with(node.all_input_nodes[0])
                graph_module.graph.erase_node(node)
                removed += 1
            elif node.target is aten.softmax.int and _dtype(node.all_input_nodes[0]) in node.args[2:]:
                # Left in, it would hold a float64 copy of the graph to float32.
                node.args = node.args[:2]
                removed += 1
        before = len(graph_module.graph.nodes)
        graph_module.graph.eliminate_dead_code()
        removed += before - len(graph_module.graph.nodes)
        return PassResult(graph_module, removed > 0, (f"{removed} operators without effect",) if removed else ())


def _is_copy(node: Node) -> bool:
    if node.target in _CASTS:
        # `type_as` would tie queries and keys to whatever their type was taken from.
        return _dtype(node) == _dtype(node.all_input_nodes[0]) is not None
    # Up to torch 2.11, and maybe later, a dropout at rest is traced as a copy.
    return node.target is aten.clone.default


def _dtype(node: Node) -> object:
    return getattr(node.meta.get("val"), "dtype", None)

"""Deletes what does nothing in a traced graph: assertions, copies, a softmax's cast to the type it has."""

from __future__ import annotations

from torch.fx import GraphModule, Node

from passes.aten import aten
from passes.base import Pass, PassResult

_ASSERTIONS = (aten._assert_tensor_metadata.default, aten._assert_async.msg, aten._assert_scalar.default)


class DropIdentities(Pass):
    """Requires a graph without in-place operators, as `vitfx.graph.trace.trace` gives it."""

    def rewrite(self, graph_module: GraphModule) -> PassResult:
        dropped = 0
        for node in list(graph_module.graph.nodes):
            if node.target in _ASSERTIONS or (node.op == "call_module" and not node.users):
                graph_module.graph.erase_node(node)
                dropped += 1
            elif node.target is aten.clone.default:
                # Up to torch 2.11, and maybe later, a dropout at rest is traced as a copy.
                node.replace_all_uses_with(node.all_input_nodes[0])
                graph_module.graph.erase_node(node)
                dropped += 1
            elif node.target is aten.softmax.int and _dtype(node.all_input_nodes[0]) in node.args[2:]:
                # Left in, it would hold a float64 copy of the graph to float32.
                node.args = node.args[:2]
                dropped += 1
        before = len(graph_module.graph.nodes)
        graph_module.graph.eliminate_dead_code()
        dropped += before - len(graph_module.graph.nodes)
        return PassResult(graph_module, dropped > 0, (f"{dropped} things without effect",) if dropped else ())


def _dtype(node: Node) -> object:
    return getattr(node.meta.get("val"), "dtype", None)

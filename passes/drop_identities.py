"""Deletes what does nothing in a traced graph: dropout that is off, casts to the same type, assertions."""

from __future__ import annotations

from torch.fx import GraphModule, Node

from passes.aten import aten
from passes.base import Pass, PassResult

_DROPOUTS = (aten.dropout.default, aten.native_dropout.default, aten.feature_dropout.default)
_CASTS = (aten.to.dtype, aten._to_copy.default, aten.to.dtype_layout)
_ASSERTIONS = (aten._assert_tensor_metadata.default, aten._assert_async.msg, aten._assert_scalar.default)


class DropIdentities(Pass):
    """Requires nothing. Ensures that a dropout, cast or copy left in the graph has an effect."""

    def rewrite(self, graph_module: GraphModule) -> PassResult:
        dropped = 0
        for node in list(graph_module.graph.nodes):
            if node.target in _ASSERTIONS or (node.op == "call_module" and not node.users):
                graph_module.graph.erase_node(node)
                dropped += 1
            elif _is_identity(node):
                node.replace_all_uses_with(node.all_input_nodes[0])
                graph_module.graph.erase_node(node)
                dropped += 1
        before = len(graph_module.graph.nodes)
        graph_module.graph.eliminate_dead_code()
        dropped += before - len(graph_module.graph.nodes)
        return PassResult(graph_module, dropped > 0, (f"{dropped} nodes without effect",) if dropped else ())


def _is_identity(node: Node) -> bool:
    if node.target in _DROPOUTS:
        probability, training = (*node.args[1:], node.kwargs.get("train", False))[:2]
        return bool(probability == 0) or not training
    if node.target in _CASTS:
        here, there = node.meta.get("val"), node.all_input_nodes[0].meta.get("val")
        return here is not None and there is not None and (here.dtype, here.device) == (there.dtype, there.device)
    return False

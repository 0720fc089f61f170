"""Cutting a part of an ATen graph out into a graph module of its own."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import Argument, map_arg

from passes.aten import aten, attribute_tensor, backward_slice
from passes.base import PassError


def extract(
    graph_module: GraphModule, start: Node, end: Node, *, owner: str, swaps: tuple[bool, bool] = (False, False)
) -> GraphModule:
    """The part that computes `end` from `start`, as a graph module of one input and one output.

    Parameters and buffers are copies, and tensors without inputs (`arange`) become buffers, which follow the module to
    another device or type, as do tensors of zeros or ones for each image. The batch size, which traced models read
    from their own input, is read from `start`.
    swaps: whether the module takes `start`, and gives `end`, with its first two axes swapped.
    Raises PassError where the part needs another activation than `start`.
    """
    graph = Graph()
    root = nn.Module()
    given = graph.placeholder("x")
    placed: dict[Node, Node] = {start: _swapped(graph, given) if swaps[0] else given}
    needed = set(backward_slice(end, start))
    for node in graph_module.graph.nodes:
        if node not in needed:
            continue
        from_nothing = node.op == "call_function" and not node.all_input_nodes
        tensor = node.target(*node.args, **node.kwargs) if from_nothing else attribute_tensor(graph_module, node)
        if node.target is aten.sym_size.int and node.args[0] is not start:
            placed[node] = _batch_size(graph, given, node)
        elif tensor is not None:
            name = f"p{sum(1 for other in graph.nodes if other.op == 'get_attr')}_{node.name}"
            _own(root, name, tensor)
            placed[node] = graph.get_attr(name)
        elif node.target in _FILLED:
            placed[node] = _filled(graph, given, node, placed)
        elif node.op == "placeholder":
            raise PassError(f"{owner} needs the model's input besides {start.name}")
        else:
            placed[node] = graph.node_copy(node, lambda source: placed[source])
    graph.output(_swapped(graph, placed[end]) if swaps[1] else placed[end])
    return GraphModule(root, graph, class_name=owner)


_FILLED = {
    aten.zeros.default: aten.new_zeros.default,
    aten.ones.default: aten.new_ones.default,
    aten.full.default: aten.new_full.default,
}


def _filled(graph: Graph, given: Node, node: Node, placed: dict[Node, Node]) -> Node:
    """On the device of `given`, and of its type, unless the numbers are no floats."""
    dtype = node.kwargs.get("dtype")
    kwargs: dict[str, Argument] = (
        {"dtype": dtype} if isinstance(dtype, torch.dtype) and not dtype.is_floating_point else {}
    )
    target: Callable[..., object] = _FILLED[node.target]  # type: ignore[index]
    return graph.call_function(target, (given, *map_arg(node.args, placed.__getitem__)), kwargs)


def _swapped(graph: Graph, node: Node) -> Node:
    return graph.call_function(aten.transpose.int, (node, 0, 1))


def _batch_size(graph: Graph, start: Node, size: Node) -> Node:
    if size.args[1] != 0:
        raise PassError(f"{size.name} reads the size of axis {size.args[1]}, which varies: only the batch may")
    return graph.call_function(aten.sym_size.int, (start, 0))


def _own(root: nn.Module, name: str, tensor: Tensor) -> None:
    if isinstance(tensor, nn.Parameter):
        root.register_parameter(name, nn.Parameter(tensor.detach().clone(), requires_grad=tensor.requires_grad))
    else:
        root.register_buffer(name, copy.deepcopy(tensor.detach()))

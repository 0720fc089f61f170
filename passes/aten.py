"""Reading ATen graphs: which nodes carry the image, which nodes all of it passes, what every node computed."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

aten = torch.ops.aten

SHAPE_OPS = frozenset(
    {
        aten.view.default,
        aten._unsafe_view.default,
        aten.reshape.default,
        aten.unflatten.int,
        aten.flatten.using_ints,
        aten.transpose.int,
        aten.t.default,
        aten.mT.default,
        aten.permute.default,
        aten.movedim.int,
        aten.squeeze.dim,
        aten.squeeze.default,
        aten.unsqueeze.default,
        aten.select.int,
        aten.slice.Tensor,
        aten.unbind.int,
        aten.chunk.default,
        aten.split.Tensor,
        aten.split_with_sizes.default,
        aten.contiguous.default,
        aten.clone.default,
        aten.alias.default,
        aten.expand.default,
        aten.repeat.default,
        aten.repeat_interleave.self_int,
        operator.getitem,
    }
)
"""Operators that move, pick or repeat elements and change none."""

Values = dict[Node, Any]
"""What every node computed on the example inputs."""


class _Recorder(Interpreter):
    def __init__(self, graph_module: GraphModule) -> None:
        super().__init__(graph_module, garbage_collect_values=False)

    def values(self, *inputs: Tensor) -> Values:
        self.run(*inputs)
        return dict(self.env)


def record_values(graph_module: GraphModule, *inputs: Tensor) -> Values:
    """Runs the graph and keeps every node's value: memory for all activations of the example batch."""
    with torch.no_grad():
        return _Recorder(graph_module).values(*inputs)


def attribute_tensor(graph_module: GraphModule, node: Node) -> Tensor | None:
    """The tensor that a get_attr node reads; None for any other node."""
    if node.op != "get_attr":
        return None
    value: Any = graph_module
    for part in str(node.target).split("."):
        value = getattr(value, part)
    return value if isinstance(value, Tensor) else None


def data_nodes(graph_module: GraphModule) -> list[Node]:
    """The nodes whose value depends on the pixels, in order: sizes and what is made of sizes alone do not."""
    carrying: dict[Node, None] = {}
    for node in graph_module.graph.nodes:
        depends = any(source in carrying for source in node.all_input_nodes)
        if node.op == "placeholder" or (depends and node.target is not aten.sym_size.int):
            carrying[node] = None
    return list(carrying)


def cut_points(nodes: list[Node]) -> list[Node]:
    """The nodes of `nodes` (in topological order) that every path from the first to the last passes.

    These are the dominators of the last node: a node is one if nothing after it reads anything before it.
    """
    position = {node: index for index, node in enumerate(nodes)}
    cuts = []
    last_read = 0
    for index, node in enumerate(nodes):
        if last_read <= index:
            cuts.append(node)
        readers = [position[user] for user in node.users if user in position]
        last_read = max([last_read, *readers])
    return cuts


def backward_slice(end: Node, stop: Node) -> Iterator[Node]:
    """The nodes that `end` is computed from, itself included, without going past `stop`.

    A size depends on no value: the tensor that it was read from is not followed.
    """
    seen = {stop}
    waiting = [end]
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        yield node
        if node.target is not aten.sym_size.int:
            waiting.extend(node.all_input_nodes)


def replay(path: list[Node], seed: Tensor, values: Values) -> Any:
    """Runs the operators of `path` on `seed`, each on the result of the one before; other arguments are as recorded."""
    result: Any = seed
    for node in path:
        known = values | {node.all_input_nodes[0]: result}
        args, kwargs = torch.fx.node.map_arg((node.args, node.kwargs), known.__getitem__)
        result = node.target(*args, **kwargs)  # type: ignore[operator]
    return result


def run_between(start: Node, end: Node, value: Tensor, values: Values) -> Tensor:
    """What `end` would be were `start` this value, everything that is not computed from `start` as it was recorded."""
    inside = set(backward_slice(end, start))
    known: Values = {start: value}
    with torch.no_grad():
        for node in end.graph.nodes:
            if node in inside and any(source in known for source in node.all_input_nodes):
                args, kwargs = torch.fx.node.map_arg(
                    (node.args, node.kwargs), lambda source: known[source] if source in known else values[source]
                )
                known[node] = node.target(*args, **kwargs)
    result: Tensor = known[end]
    return result

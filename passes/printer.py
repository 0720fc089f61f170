"""A graph as text: a line for each sublayer of a canonical graph, as in the paper's figure, and for each other node.

    a0  LayerNorm → Attention(2 heads of 4, scale 0.5, bias of q k v out)  1×5×8  304  3,360

Norm, sublayer and residual add are one line. A line reads the one above it unless it names another. A plain norm has
neither scale nor shift.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from passes.aten import SHAPE_OPS, aten, attribute_tensor
from passes.norms import NORMS, Norm, NormOnNorm
from passes.stream import module_of

_PLUMBING = (SHAPE_OPS | {aten.sym_size.int}) - {aten.select.int, aten.slice.Tensor}
"""What is left out of the graphs that a graph calls."""


@dataclass(frozen=True)
class Line:
    """One step of a graph, for one image."""

    name: str  #: by which other lines refer to it
    computes: str
    shape: str = ""  #: of its result
    parameters: int = 0
    flops: int = 0

    def cells(self) -> tuple[str, ...]:
        counts = (f"{count:,}" if count else "" for count in (self.parameters, self.flops))
        return self.name, self.computes, self.shape, *counts


def node_count(graph_module: GraphModule) -> int:
    """Nodes of the graph and of the graphs that it calls."""
    return sum(len(part.graph.nodes) for part in graph_module.modules() if isinstance(part, GraphModule))


def format_graph(graph_module: GraphModule, pixels: Tensor) -> str:
    """The graph's lines as a table with totals. pixels: (B, C, H, W), of which one image is run."""
    lines = list(read_lines(graph_module, pixels))
    parameters = sum(parameter.numel() for parameter in graph_module.parameters())
    total = Line("total", "", "", parameters, sum(line.flops for line in lines))
    rows = [("name", "computes", "shape", "parameters", "FLOPs"), *(line.cells() for line in (*lines, total))]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligns = (str.ljust, str.ljust, str.rjust, str.rjust, str.rjust)
    return "\n".join(
        "  ".join(align(cell, width) for align, cell, width in zip(aligns, row, widths, strict=True)).rstrip()
        for row in rows
    )


def read_lines(graph_module: GraphModule, pixels: Tensor) -> Iterator[Line]:
    """In the graph's order. Raises what the graph raises where it does not take such pixels."""
    profile = _Profile(graph_module)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        profile.run(pixels[:1].to(next(graph_module.parameters())))
    sums = {node: parts for node in graph_module.graph.nodes if (parts := _parts(graph_module, node))}
    inside = {part for parts in sums.values() for part in parts}
    inside |= {node for node in graph_module.graph.nodes if _whole(node) is not node}
    names: dict[object, str] = {}
    above: Node | None = None
    for node in graph_module.graph.nodes:
        if node in inside or node.op == "get_attr" or (node.op == "output" and node.all_input_nodes == [above]):
            continue
        parts = (*sums.get(node, ()), node)
        names[node] = str(parts[1].target) if node in sums else node.name
        yield Line(
            names[node],
            _computes(graph_module, parts, names, above),
            "×".join(map(str, profile.shapes.get(node, ()))),
            sum(_parameters(graph_module, part) for part in parts),
            sum(profile.flops[part] for part in parts),
        )
        above = node


class _Profile(Interpreter):
    """Runs a graph and keeps the shape of each tensor and the FLOPs of each node."""

    def __init__(self, graph_module: GraphModule) -> None:
        super().__init__(graph_module)
        self.shapes: dict[Node, torch.Size] = {}
        self.flops: dict[Node, int] = {}

    def run_node(self, n: Node) -> Any:
        with FlopCounterMode(display=False) as counter:
            value = super().run_node(n)
        self.flops[n] = counter.get_total_flops()
        result = value[0] if isinstance(value, tuple) else value
        if isinstance(result, Tensor):
            self.shapes[n] = result.shape
        return value


def _whole(node: Node) -> Node:
    """The call of a module of which the node is a part: where tokens merge, keys, sizes and groups go beside them."""
    source = node.args[0] if node.target is operator.getitem else None
    return source if isinstance(source, Node) and source.op == "call_module" else node


def _parts(graph_module: GraphModule, add: Node) -> tuple[Node, Node] | None:
    """Norm and sublayer of a residual add; None for any other node."""
    if add.target is not operator.add:
        return None
    for added in add.all_input_nodes:
        sublayer = _whole(added)
        norm = sublayer.all_input_nodes[0] if sublayer.op == "call_module" else sublayer
        alone = len(added.users) == len(norm.users) == 1
        if norm is not sublayer and alone and isinstance(module_of(graph_module, norm), NORMS):
            return norm, sublayer
    return None


def _computes(graph_module: GraphModule, parts: tuple[Node, ...], names: dict[object, str], above: Node | None) -> str:
    if len(parts) == 3:
        norm, sublayer, add = parts
        stream = next(source for source in map(_whole, add.all_input_nodes) if source is not sublayer)
        reads, adds_to = _whole(norm.all_input_nodes[0]), f", added to {names[stream]}"
        text = f"{_describe(graph_module, norm)} → {_describe(graph_module, sublayer)}"
        same = reads is stream or stream is above
        return text + ("" if reads is above else f" of {names[reads]}") + ("" if same else adds_to)
    (node,) = parts
    if node.op == "placeholder":
        return "input"
    if node.op == "call_module":
        text = _describe(graph_module, node)
        reads = _whole(node.all_input_nodes[0])
        return text if reads is above else f"{text} of {names[reads]}"
    # Devices, layouts and memory formats are of no interest here.
    numbers = {name: value for name, value in node.kwargs.items() if isinstance(value, int | float)}
    options = [f"{name}={value}" for name, value in numbers.items()]
    return f"{_operator(node)}({', '.join([*map(_argument, node.args), *options])})"


def _describe(graph_module: GraphModule, node: Node) -> str:
    module = module_of(graph_module, node)
    if isinstance(module, NORMS):
        return _norm(module)
    if isinstance(module, GraphModule):
        calls = [part for part in module.graph.nodes if part.op == "call_function"]
        return " → ".join(_operator(call) for call in calls if call.target not in _PLUMBING) or "reshape"
    return f"{type(module).__name__}({'' if module is None else module.extra_repr()})"


def _norm(norm: Norm) -> str:
    if isinstance(norm, NormOnNorm):
        return f"{_norm(norm.first)} → {_norm(norm.second)}"
    return type(norm).__name__ + ("" if norm.elementwise_affine else "(plain)")


def _operator(node: Node) -> str:
    """aten.linear.default is "linear"."""
    if node.op == "output":
        return "output"
    return getattr(node.target, "__name__", str(node.target)).partition(".")[0]


def _argument(argument: object) -> str:
    if isinstance(argument, list | tuple):
        return f"[{', '.join(map(_argument, argument))}]"
    return str(argument)


def _parameters(graph_module: GraphModule, node: Node) -> int:
    module = module_of(graph_module, node)
    if module is not None:
        return sum(parameter.numel() for parameter in module.parameters())
    read = (attribute_tensor(graph_module, source) for source in node.all_input_nodes)
    return sum(tensor.numel() for tensor in read if isinstance(tensor, nn.Parameter))

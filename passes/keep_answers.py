"""Leaving out logits: the rows of the last projection that give them go."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.fx import GraphModule, Node

from passes.aten import Values, aten, attribute_tensor, data_nodes, record_values
from passes.base import Pass, PassError, PassResult
from passes.stream import is_canonical, module_of

_PROJECTIONS = {
    aten.linear.default: {1: -2, 2: -1},
    aten.addmm.default: {0: -1, 2: -1},
    aten.matmul.default: {1: -1},
    aten.mm.default: {1: -1},
}
"""By operator: the arguments that hold the last axis of its result, and where they hold it."""
_TRANSPOSED = frozenset({aten.t.default, aten.mT.default, aten.transpose.int})
_BY_ELEMENT = frozenset(
    {
        aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor, aten.div.Tensor, aten.tanh.default, aten.sigmoid.default,
        aten.alias.default, aten.clone.default, aten.contiguous.default,
    }
)  # fmt: skip
LOG_SUM_EXP, SUM = "log-sum-exp", "sum"
_REST = {LOG_SUM_EXP: aten.logsumexp.default, SUM: aten.sum.dim_IntList}
_KEPT = "kept_answers"
"""Where a head's `meta` says what was kept of it."""
_SOFTMAX = frozenset({aten.softmax.int, aten._softmax.default, aten.log_softmax.int, aten._log_softmax.default})


class KeepAnswers(Pass):
    """Requires and ensures a canonical graph with answers (B, K). Only some are left, in the order of `positions`; a
    softmax behind them is over them alone.

    Weights are sliced where they make the answers. Where no weights are found that do, the answers are picked. A graph
    that was cut to these positions stays as it is, until `forget_kept` makes what is left the answers to choose from.

    positions: among the K. example: pixels (B, C, H, W), which show the shapes of what is computed.
    rest: what one more answer, the last, makes of those that are left out: `LOG_SUM_EXP`, of logits and logarithms of
        probabilities, or `SUM`, of probabilities, so that it is the probability of them all. None for no such answer.
    """

    requires = (is_canonical,)
    ensures = (is_canonical,)

    def __init__(self, positions: tuple[int, ...], example: Tensor, rest: str | None = None) -> None:
        self.positions, self.example, self.rest = positions, example, rest

    def rewrite(self, graph_module: GraphModule) -> PassResult:
        (output,) = graph_module.graph.find_nodes(op="output")
        (classifier,) = output.all_input_nodes
        head = module_of(graph_module, classifier)
        if not isinstance(head, GraphModule):
            raise PassError(f"the answers come from {classifier.name}, which is no classifier")
        read = record_values(graph_module, self.example)[classifier.all_input_nodes[0]]
        values = record_values(head, read)
        (answers,) = head.graph.find_nodes(op="output")[0].all_input_nodes
        every = range(values[answers].shape[-1])
        if head.meta.get(_KEPT) == (self.positions, self.rest) or self.positions == tuple(every):
            return PassResult(graph_module, False)
        others = [] if self.rest is None else [place for place in every if place not in self.positions]
        slicing = _Slicing(head, values, torch.tensor([*self.positions, *others]))
        slicing.run(_REST[self.rest] if self.rest and others else None, len(self.positions))
        head.meta[_KEPT] = (self.positions, self.rest)
        activations = {node.name for node in data_nodes(head)}
        picked = [name for name in slicing.picked if name in activations]
        notes = [f"the answers are picked behind {name}, which is computed whole" for name in picked]
        return PassResult(graph_module, True, tuple(notes))


def forget_kept(graph_module: GraphModule) -> None:
    """Further positions are among the answers that are left."""
    for module in graph_module.modules():
        if isinstance(module, GraphModule):
            module.meta.pop(_KEPT, None)


@dataclass
class _Slicing:
    """Goes from the answers back to the weights that make them. Axes count from the last, -1."""

    head: GraphModule
    values: Values  #: of the head's nodes
    positions: Tensor  #: int64
    kept: dict[tuple[Node, int], Node] = field(default_factory=dict)  #: by node and axis, what replaces it
    picked: list[str] = field(default_factory=list)  #: the nodes that something is picked from

    def run(self, rest: OpOverload | None, kept: int) -> None:
        """kept: how many answers are left. rest: makes one of all behind them."""
        graph = self.head.graph
        (output,) = graph.find_nodes(op="output")
        (answers,) = output.all_input_nodes
        part = self.part(answers, -1)
        if rest is not None:
            with graph.inserting_before(output):
                first = graph.call_function(aten.slice.Tensor, (part, 1, 0, kept))
                others = graph.call_function(aten.slice.Tensor, (part, 1, kept, len(self.positions)))
                last = graph.call_function(rest, (others, [1], True))
                part = graph.call_function(aten.cat.default, ([first, last], 1))
        output.replace_input_with(answers, part)
        graph.eliminate_dead_code()
        self._rename()
        self.head.recompile()

    def part(self, node: Node, axis: int) -> Node:
        """The kept part of a node along an axis, as a node behind it."""
        if (node, axis) not in self.kept:
            with node.graph.inserting_after(node):
                self.kept[node, axis] = self._part(node, axis)
        return self.kept[node, axis]

    def _part(self, node: Node, axis: int) -> Node:
        value = self.values[node]
        if attribute_tensor(self.head, node) is not None:
            part = value.detach().index_select(axis, self.positions)
            part = nn.Parameter(part) if isinstance(value, nn.Parameter) else part
            return self._attribute(f"{node.target}_kept{-axis}", part, node)
        if node.target in _TRANSPOSED and value.dim() == 2:
            return self._copy(node, {0: -3 - axis})
        if node.target in _PROJECTIONS and axis == -1:
            return self._copy(node, _PROJECTIONS[node.target])
        if node.target in _BY_ELEMENT or (node.target in _SOFTMAX and node.args[1] in (axis, value.dim() + axis)):
            count = value.shape[axis]
            return self._copy(
                node, {place: axis for place, part in enumerate(node.args) if self._holds(part, axis, count)}
            )
        self.picked.append(node.name)
        index = self._attribute(f"{node.name}_kept", self.positions.clone(), node)
        with node.graph.inserting_after(index):
            return node.graph.call_function(aten.index_select.default, (node, axis, index))

    def _holds(self, part: object, axis: int, count: int) -> bool:
        """Whether it is a tensor with a value for each of the `count` answers, and not one for all."""
        value = self.values.get(part) if isinstance(part, Node) else None
        return isinstance(value, Tensor) and value.dim() >= -axis and value.shape[axis] == count

    def _copy(self, node: Node, axes: dict[int, int]) -> Node:
        """The node once more, which reads the kept parts of these of its arguments, along these axes."""
        arguments = list(node.args)
        for place, axis in axes.items():
            if place < len(arguments) and isinstance(part := arguments[place], Node):
                arguments[place] = self.part(part, axis)
        return node.graph.create_node("call_function", node.target, tuple(arguments), node.kwargs, node.name)

    def _attribute(self, name: str, tensor: Tensor, behind: Node) -> Node:
        if isinstance(tensor, nn.Parameter):
            self.head.register_parameter(name, tensor)
        else:
            self.head.register_buffer(name, tensor)
        with behind.graph.inserting_after(behind):
            return behind.graph.get_attr(name)

    def _rename(self) -> None:
        """What was sliced takes the name of the whole, where nothing reads that any more."""
        read = {str(node.target) for node in self.head.graph.find_nodes(op="get_attr")}
        for (whole, _), part in self.kept.items():
            if whole.op == "get_attr" and whole.target not in read and part.target in read:
                name, now = str(whole.target), str(part.target)
                tensor = getattr(self.head, now)
                delattr(self.head, now)
                setattr(self.head, name, tensor)
                part.target = name

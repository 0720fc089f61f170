"""Blocks whose attention and MLP read one stream: what they add becomes one sum of branches behind one addition.

    (x + a(x)) + m(x), x + γ (a(x) + m(x)), x + W [a(x), m(x)]   ->   x + (a'(x) + m'(x))

Dehghani et al. 2023 (arXiv:2302.05442) has such blocks, with one projection for both or two.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from torch.fx import Graph, GraphModule, Node

from passes.aten import aten, cut_points
from passes.known_forms import attends
from passes.layout import Walker


@dataclass(frozen=True)
class _Term:
    """One of the branches that are added to the stream."""

    node: Node
    linear: Node | None = None  #: whose columns `columns` read the node; None where the node itself is added
    columns: tuple[int, int] = (0, 0)
    biased: bool = False  #: it takes the projection's bias
    gains: tuple[tuple[Node, Node], ...] = ()  #: multiplications with constants behind it, and what they multiply


def gather_branches(walker: Walker) -> GraphModule | None:
    """The graph with the branches of such blocks gathered, equal up to rounding; None where it has no such block."""
    gathered = []
    for start, end in itertools.pairwise(cut_points(walker.data)):
        terms = list(_terms(walker, start, end)) if _is_sum(walker, end) else []
        branches = [term for term in terms if term.node is not start]
        if len(branches) == len(terms) - 1 and len({attends(term.node, start) for term in branches}) == 2:
            gathered.append((start, end, branches))
    return _written(walker.graph_module, gathered) if gathered else None


def _is_sum(walker: Walker, node: Node) -> bool:
    """Of two things that are computed from the image, as they are."""
    both = all(isinstance(part, Node) and walker.carries_data(part) for part in node.args)
    return node.target is aten.add.Tensor and not node.kwargs and both


def _terms(walker: Walker, start: Node, node: Node) -> Iterator[_Term]:
    """Those whose sum the node is. The stream `start` may be one."""
    if node is start:
        yield _Term(node)
        return
    if _is_sum(walker, node):
        for part in node.args:
            yield from _terms(walker, start, cast(Node, part))
        return
    step = walker.multiplication(node)
    if step is not None and step[0] is not start:
        for term in _terms(walker, start, step[0]):
            yield replace(term, gains=(*term.gains, (node, step[0])))
        return
    parts = _joined(walker, node)
    if not parts:
        yield _Term(node)
    place = 0
    for part in parts:
        behind = place + walker.values[part].shape[-1]
        yield _Term(part, node, (place, behind), biased=not place)
        place = behind


def _joined(walker: Walker, linear: Node) -> Sequence[Node]:
    """What a projection reads side by side; nothing where it is none, or reads one thing."""
    joined = linear.args[0] if linear.target is aten.linear.default else None
    if not isinstance(joined, Node) or joined.target is not aten.cat.default:
        return ()
    axis = joined.args[1] if len(joined.args) > 1 else 0
    parts = cast("Sequence[Node]", joined.args[0])
    by_channel = axis in (-1, walker.values[joined].dim() - 1)
    return parts if by_channel and all(walker.carries_data(part) for part in parts) else ()


def _written(source: GraphModule, gathered: Sequence[tuple[Node, Node, Sequence[_Term]]]) -> GraphModule:
    graph = Graph()
    copies: dict[Node, Node] = {}
    output = graph.graph_copy(source.graph, copies)
    graph.output(output)
    for start, end, terms in gathered:
        with graph.inserting_before(copies[end]):
            first, *others = (_branch(graph, copies, term) for term in terms)
            for branch in others:
                first = graph.call_function(aten.add.Tensor, (first, branch))
            total = graph.call_function(aten.add.Tensor, (copies[start], first))
        copies[end].replace_all_uses_with(total)
        copies[end] = total
    graph.eliminate_dead_code()
    return GraphModule(source, graph)


def _branch(graph: Graph, copies: Mapping[Node, Node], term: _Term) -> Node:
    branch = copies[term.node]
    if term.linear is not None:
        weight, *bias = (copies[part] for part in term.linear.all_input_nodes[1:])
        columns = graph.call_function(aten.slice.Tensor, (weight, 1, *term.columns))
        branch = graph.call_function(aten.linear.default, (branch, columns, *(bias if term.biased else ())))
    for gain, multiplied in term.gains:
        branch = graph.node_copy(gain, ({**copies, multiplied: branch}).__getitem__)
    return branch

"""ATen graph of any pre-LN ViT -> ViT dialect, by structure, never by parameter names.

The residual stream is a chain of *cut points*: nodes that every path from the pixels to the logits passes. Between two
of them stands a sublayer if the later one is the sum of the earlier and something computed from it. What such a
sublayer computes is matched as attention or MLP, or as both side by side, and a match counts only if it gives the
recorded values. What does not match stays a graph of ATen operators, with the reason in the notes.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from passes.aten import aten, attribute_tensor, backward_slice, cut_points, data_nodes, record_values
from passes.base import Pass, PassError, PassResult
from passes.dialect import AddConstant, Attention
from passes.extract import extract
from passes.gather_branches import gather_branches
from passes.known_forms import attends, attention_beside, known_form
from passes.layout import Mismatch, Walker
from passes.match_attention import match_attention
from passes.match_mlp import match_mlp
from passes.match_norm import match_norm, match_single_norm
from passes.match_parallel import Matched, match_parallel, summands
from passes.match_pooling import match_pooling
from passes.pooled_attention import FreshTokens, PooledAttention
from passes.stream import is_canonical

_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-9}


@dataclass
class _Segment:
    """What stands between two neighbouring cut points."""

    start: Node
    end: Node
    branch: Node | None = None  #: what is added to the stream, if anything is
    names: Sequence[str] = ()  #: of the parts; of what is not recognised, one
    parts: Sequence[Matched] = ()  #: what is recognised: a sublayer with its norm, or two that read the stream
    reason: str = ""  #: why there is nothing
    known: bool = False  #: the reason is a form that has a name


class Canonicalize(Pass):
    """Requires an ATen graph with one input. Ensures a canonical graph, equal in value.

    example: pixels (2, C, H, W), on which values are recorded to learn layouts and to check every match.
    """

    in_place = False
    ensures = (is_canonical,)

    def __init__(self, example: Tensor) -> None:
        if example.shape[0] < 2:
            raise PassError(f"the example has a batch of {example.shape[0]}: give two, to tell the axes apart")
        self.example = example

    def rewrite(self, graph_module: GraphModule) -> PassResult:
        """Raises PassError with the reason where no attention sublayer is recognised."""
        walker = self._walker(graph_module)
        segments = _segments(walker, len(self.example))
        if all(segment.branch is None for segment in segments):
            walker.tokens_first = True
            segments = _segments(walker, len(self.example))
        first, last = _stream_ends(segments)
        inside = segments[first : last + 1]
        tokens = walker.stream(inside[0].start).shape[1]
        for segment in inside:
            _match(walker, segment, tokens)
            tokens = next((part.queries for _, part in segment.parts if isinstance(part, PooledAttention)), tokens)
        _refuse_the_unrecognisable(inside)
        _name(walker, inside)
        result = _Builder(walker).build(segments, first, last)
        notes = [f"{segment.names[0]} is not prunable: {segment.reason}" for segment in inside if segment.reason]
        notes += attention_beside(walker, inside[0].start, inside[-1].end)
        return PassResult(result, True, tuple(notes))

    def _walker(self, graph_module: GraphModule) -> Walker:
        walker = Walker(graph_module, record_values(graph_module, self.example))
        gathered = gather_branches(walker)
        return walker if gathered is None else Walker(gathered, record_values(gathered, self.example))


def _segments(walker: Walker, batch: int) -> list[_Segment]:
    """Neighbours that add nothing to the stream are one segment, so that those inside begin and end on the stream."""
    output = next(node for node in walker.graph_module.graph.nodes if node.op == "output")
    if len(output.all_input_nodes) != 1:
        raise PassError(f"the model returns {len(output.all_input_nodes)} tensors: wrap it to return the logits alone")
    nodes = [node for node in data_nodes(walker.graph_module) if node is not output]
    reached = set(backward_slice(output.all_input_nodes[0], nodes[0])) | {nodes[0]}
    segments: list[_Segment] = []
    for start, end in itertools.pairwise(cut_points([node for node in nodes if node in reached])):
        branch = _branch(walker, start, end, batch)
        if branch is None and segments and segments[-1].branch is None:
            segments[-1].end = end
        else:
            segments.append(_Segment(start, end, branch))
    return segments


def _branch(walker: Walker, start: Node, end: Node, batch: int) -> Node | None:
    """What is added to a (batch, tokens, width) stream between two neighbouring cut points, if anything is."""
    stream = walker.values[end]
    if end.target is not aten.add.Tensor or len(end.args) != 2 or end.kwargs or stream.dim() != 3:
        return None
    others = [argument for argument in end.args if argument is not start]
    if len(others) != 1 or not isinstance(others[0], Node) or not walker.carries_data(others[0]):
        return None
    same = stream.shape == walker.values[start].shape == walker.values[others[0]].shape
    return others[0] if same and len(walker.stream(end)) == batch else None


def _stream_ends(segments: list[_Segment]) -> tuple[int, int]:
    """The first and last residual sublayer."""
    residual = [index for index, segment in enumerate(segments) if segment.branch is not None]
    if not residual:
        raise PassError(
            "it is no pre-LN ViT: no sublayer is added to a (batch, tokens, width) stream that the whole image passes"
        )
    return residual[0], residual[-1]


def _match(walker: Walker, segment: _Segment, tokens: int) -> None:
    """Fills in the segment's parts, or the reason why it has none."""
    try:
        segment.parts = _matched(walker, segment, tokens)
    except Mismatch as mismatch:
        terms = [] if segment.branch is None else summands(walker, segment.branch)
        forms = (known_form(walker, segment.start, term, segment.end) for term in terms)
        form = next((form for form in forms if form is not None), None)
        segment.reason, segment.known = form or str(mismatch), form is not None


def _matched(walker: Walker, segment: _Segment, tokens: int) -> Sequence[Matched]:
    branch = segment.end if segment.branch is None else segment.branch
    count = walker.stream(segment.start).shape[1]
    if count != tokens:
        raise Mismatch(f"it has {count} tokens where the stream begins with {tokens}")
    parts = _parallel(walker, segment.start, branch) if segment.branch is not None else None
    if parts is None:
        parts = [_recognised(walker, segment.start, branch, pools=segment.branch is None)]
    stream, recorded = walker.stream(segment.start), walker.stream(branch)
    with torch.no_grad():
        matched = torch.stack([module(norm(stream)) for norm, module in parts]).sum(dim=0)
    error = float((matched - recorded).abs().max() / recorded.abs().max().clamp_min(torch.finfo(recorded.dtype).tiny))
    if not error < _TOLERANCE.get(recorded.dtype, 1e-2):
        names = " and ".join(type(module).__name__ for _, module in parts)
        raise Mismatch(f"the matched {names} is off by {error:.1e}")
    return parts


def _parallel(walker: Walker, stream: Node, branch: Node) -> Sequence[Matched] | None:
    return match_parallel(walker, branch, lambda term: _recognised(walker, stream, term))


def _recognised(walker: Walker, stream: Node, branch: Node, *, pools: bool = False) -> Matched:
    """pools: the branch takes the stream's place."""
    attention = attends(branch, stream)
    if pools and not attention:
        raise Mismatch("it replaces the stream and adds nothing to it")
    norm_node, norm = match_norm(walker, stream, branch)
    match = match_pooling if pools else match_attention if attention else match_mlp
    return norm, match(walker, norm_node, branch)


def _refuse_the_unrecognisable(inside: list[_Segment]) -> None:
    if any(isinstance(module, Attention) for segment in inside for _, module in segment.parts):
        return
    named = any(segment.known for segment in inside)
    reasons = list(dict.fromkeys(part.reason for part in inside if part.reason and part.known >= named))
    raise PassError(
        "no attention sublayer of a pre-LN ViT is recognised in this model: " + "; ".join(reasons[:3])
        if reasons
        else "no attention sublayer is recognised in this model, which has only MLPs"
    )


def _name(walker: Walker, inside: list[_Segment]) -> None:
    """a0, m0, a1, …: unrecognised sublayers are counted, so that a name gives the layer."""
    counts = {"a": 0, "m": 0}
    for segment in inside:
        if segment.branch is None and not segment.parts:
            segment.names = [f"between_{segment.end.name}"]
            continue
        terms = [segment.end] if segment.branch is None else summands(walker, segment.branch)
        kinds = sorted({"a" if attends(term, segment.start) else "m" for term in terms})
        numbered = [f"{kind}{counts[kind]}" for kind in kinds]
        segment.names = numbered if segment.parts else [f"{numbered[0]}_opaque"]
        for kind in kinds:
            counts[kind] += 1


class _Builder:
    """Writes the canonical graph, one module after the other."""

    def __init__(self, walker: Walker) -> None:
        self.source, self.walker = walker.graph_module, walker
        self.root = nn.Module()
        self.graph = Graph()
        self.stream = self.graph.placeholder("pixels")

    def build(self, segments: list[_Segment], first: int, last: int) -> GraphModule:
        self._embed(segments[0].start, segments[first].start)
        for segment in segments[first : last + 1]:
            if not segment.parts:
                self._extract(segment.names[0], segment.start, segment.end, swaps=(True, True))
                continue
            stream = carried = self.stream
            for name, (norm, module) in zip(segment.names, segment.parts, strict=True):
                self.stream = stream
                if isinstance(module, PooledAttention):
                    self._call(f"{name}_fresh", FreshTokens(module.queries))
                    carried, self.stream = self.stream, stream
                self._call(f"{name}_norm", norm)
                self._call(name, module)
                carried = self.graph.call_function(operator.add, (carried, self.stream), name=f"{name}_add")
            self.stream = carried
        self._head(segments[last].end, segments[-1].end)
        self.graph.output(self.stream)
        return GraphModule(self.root, self.graph, class_name="ViT")

    def _call(self, name: str, module: nn.Module) -> None:
        self.root.add_module(name, module)
        self.stream = self.graph.create_node("call_module", name, (self.stream,), name=name)

    def _extract(self, name: str, start: Node, end: Node, *, swaps: tuple[bool, bool]) -> None:
        """swaps: whether `start` and `end` are the stream, which the canonical graph has with images first."""
        first = self.walker.tokens_first
        swaps = (first and swaps[0], first and swaps[1])
        self._call(name, extract(self.source, start, end, owner=name, swaps=swaps))

    def _embed(self, pixels: Node, stream: Node) -> None:
        """A position table that is added last is split off, so that constants can be folded into it."""
        table = self._position_table(stream)
        if table is None:
            self._extract("embed", pixels, stream, swaps=(False, True))
            return
        patches, value = table
        self._extract("embed", pixels, patches, swaps=(False, True))
        positions = AddConstant(tuple(value.shape)).to(value.dtype)
        with torch.no_grad():
            positions.value.copy_(value)
        self._call("positions", positions)

    def _position_table(self, stream: Node) -> tuple[Node, Tensor] | None:
        """(the patches, (T, D)): the table may be a part of a parameter, or looked up in one."""
        if stream.target is not aten.add.Tensor or len(stream.args) != 2 or stream.kwargs:
            return None
        shape = self.walker.stream(stream).shape[1:]
        tokens, width = shape
        forms = ((tokens, 1, width),) if self.walker.tokens_first else ((tokens, width), (1, tokens, width))
        for patches, table in (stream.args[:2], stream.args[1::-1]):
            value = self.walker.constant(table)
            if value is None or tuple(value.shape) not in forms:
                continue
            made_of = backward_slice(cast(Node, table), cast(Node, patches))
            if any(isinstance(attribute_tensor(self.source, node), nn.Parameter) for node in made_of):
                return cast(Node, patches), value.reshape(shape)
        return None

    def _head(self, stream: Node, logits: Node) -> None:
        """The final norm stands by itself where it is the first to read the stream."""
        with suppress(Mismatch):
            node, norm = match_single_norm(self.walker, stream, logits)
            if node is not logits:
                self._call("norm", norm)
                stream = node
        if stream is not logits:
            self._extract("head", stream, logits, swaps=(True, False))

"""What a sublayer that is not recognised is, where it has a form that the field has a name for.

Each form is told by the graph alone: what reads what, and which axes the attention runs over.

Shapes: T tokens, d channels of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch.fx import Node

from passes.aten import aten, backward_slice
from passes.layout import Walker
from passes.match_core import PRODUCTS, SDPA, SOFTMAX_OPS
from passes.match_norm import find_norm
from passes.match_transforms import NORM_PARTS, find_inner_norm


def known_form(walker: Walker, start: Node, branch: Node, end: Node) -> str | None:
    """In words, the form of what computes `branch` from the stream `start`, which it is added to in `end`; None where
    it has no known one."""
    stretch = [node for node in backward_slice(branch, start) if walker.carries_data(node)]
    return (
        _norms(walker, start, branch, end) or _differential(walker, start, stretch) or _patterns(walker, start, stretch)
    )


def attends(end: Node, start: Node) -> bool:
    """Whether attention stands between the nodes."""
    return any(node.target in (SDPA, *SOFTMAX_OPS) for node in backward_slice(end, start))


def attention_beside(walker: Walker, first: Node, last: Node) -> list[str]:
    """Notes of the attention before the stream begins and behind its end, where there is any.

    first: the stream's first node. last: its last one.
    """
    notes = []
    if _has_product(first, walker.data[0]):
        notes.append(
            "embed is not prunable: attention in it comes before all of the image passes one stream of tokens "
            "(TNT has two streams)"
        )
    if _has_product(walker.data[-1], last):
        notes.append(
            "head is not prunable: attention in it adds nothing to the stream (CLIP's AttentionPool2d pools so)"
        )
    return notes


def _has_product(end: Node, start: Node) -> bool:
    """An attention product stands between: a softmax alone makes probabilities."""
    inside = list(backward_slice(end, start))
    products = [node for node in inside if node.target in PRODUCTS]
    return any(node.target is SDPA for node in inside) or any(
        part.target in SOFTMAX_OPS for node in products for part in backward_slice(cast(Node, node.args[0]), start)
    )


def _norms(walker: Walker, start: Node, branch: Node, end: Node) -> str | None:
    """Norms that stand behind a sublayer."""
    before = find_norm(walker, start, branch) is not None
    after = walker.trail(branch, gains=True).start
    if after is not start and find_inner_norm(walker, start, after)[1] is not None:
        if before:
            return "its output is normalised before it is added to the stream, besides its input (a sandwich norm)"
        return "its output is normalised before it is added to the stream, and not its input (residual-post-norm)"
    inside = any(node.target in NORM_PARTS for node in backward_slice(branch, start))
    if not before and not inside and find_norm(walker, end, walker.data[-1]) is not None:
        return "the stream is normalised behind the sum, and not before the sublayer (post-LN)"
    return None


def _differential(walker: Walker, start: Node, stretch: Sequence[Node]) -> str | None:
    for node in stretch:
        parts = [part for part in node.all_input_nodes if walker.carries_data(part)]
        if node.target is aten.sub.Tensor and len(parts) == 2 and all(attends(part, start) for part in parts):
            return "its attention is the difference of two attention products (differential attention)"
    return None


def _patterns(walker: Walker, start: Node, stretch: Sequence[Node]) -> str | None:
    """What is odd about q kᵀ: which axes it runs over, and whether heads stand alone in it."""
    batch, tokens, _ = walker.stream(start).shape
    for softmax in (node for node in stretch if node.target in SOFTMAX_OPS):
        scores = list(backward_slice(softmax, start))
        products = [node for node in scores if _is_product(walker, node)]
        if any(node.target is aten.linear.default and _reads(node, products) for node in scores):
            return "a linear map mixes the attention patterns of its heads (talking heads)"
        queries = walker.values[cast(Node, products[0].args[0])].shape if products else torch.Size()
        if len(queries) == 4 and queries[0] == batch and queries[-1] == tokens != walker.values[softmax].shape[-1]:
            return "its attention runs over channels and not over tokens (cross-covariance attention)"
    for node in stretch:
        if node.target not in (SDPA, *SOFTMAX_OPS):
            continue
        keys = (
            walker.values[cast(Node, node.args[1])].shape[-2] if node.target is SDPA else walker.values[node].shape[-1]
        )
        if keys != tokens:
            return f"its attention runs over {keys} positions at a time where the stream has {tokens} tokens (windows)"
    return None


def _is_product(walker: Walker, node: Node) -> bool:
    return node.target in PRODUCTS and all(walker.carries_data(part) for part in node.all_input_nodes)


def _reads(node: Node, products: Sequence[Node]) -> bool:
    return any(part in products for part in backward_slice(cast(Node, node.args[0]), node))

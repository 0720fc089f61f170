"""Recognising an activation function: by its values where it is a known one, else kept as its graph.

What the graph does is found by experiment. It is elementwise if a change of some elements leaves the others as they
are, and the same everywhere if a permutation of the elements before it is one behind it.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import GraphModule, Node

from passes.aten import backward_slice
from passes.base import PassError
from passes.extract import extract
from passes.layout import Mismatch, Walker
from passes.mlp import ACTIVATIONS, Activation

_SPREADS = (0.1, 1.0, 10.0)
_SHAPES = ((3, 5, 7), (4, 6), (1, 1, 1))


def match_activation(walker: Walker, start: Node, end: Node) -> Activation:
    """The function that makes `end` of `start`. Raises Mismatch where it is not elementwise."""
    before, after = walker.values[start], walker.values[end]
    tolerance = 1e-5 if before.dtype == torch.float32 else 1e-9
    if before.shape == after.shape:
        for name, function in ACTIVATIONS.items():
            if torch.allclose(function(before), after, rtol=tolerance, atol=tolerance):
                return name
    try:
        made = extract(walker.graph_module, start, end, owner="activation").eval()
    except PassError as error:
        raise Mismatch(f"what stands between its linear maps is no activation: {error.reason}") from error
    with torch.no_grad():
        if before.shape != after.shape or not _is_elementwise(made, before):
            names = [f"{node.name} ({node.target})" for node in backward_slice(end, start) if walker.carries_data(node)]
            raise Mismatch(
                f"what stands between its linear maps is not one function of each neuron by itself: {names[-1]}"
                + (f" to {names[0]}" if len(names) > 1 else "")
            )
    return made


def _is_elementwise(function: GraphModule, like: Tensor) -> bool:
    """Whether it is one function of each element, for tensors of any shape."""
    draws = torch.Generator().manual_seed(0)
    for shape in (tuple(like.shape), *_SHAPES):
        for spread in _SPREADS:
            first, second = (spread * torch.randn(shape, generator=draws, dtype=like.dtype) for _ in range(2))
            kept = torch.rand(shape, generator=draws) < 0.5
            order = torch.randperm(first.numel(), generator=draws)
            try:
                result = function(first)
                changed = function(torch.where(kept, first, second))
                moved = function(first.flatten()[order].reshape(shape))
            except (RuntimeError, IndexError):
                return False
            if result.shape != first.shape or result.dtype != first.dtype:
                return False
            if not (_same(changed[kept], result[kept]) and _same(moved.flatten(), result.flatten()[order])):
                return False
    return True


def _same(ours: Tensor, theirs: Tensor) -> bool:
    # Vectorised loops end in scalar ones, which may round otherwise.
    tolerance = 1e-6 if theirs.dtype == torch.float32 else 1e-13
    return torch.allclose(
        ours, theirs, rtol=tolerance, atol=tolerance * float(theirs.abs().max()) if len(theirs) else 0
    )

"""Weights of int8 maps in eight bits, as far as every CPU adds up their products."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import NodeProto

from vitfx.deploy.int8_tuning import initializers, is_transposed, matrix_of, set_weight

PAIR = 128
"""What the sizes of two neighbouring weights may add up to. CPUs without VNNI multiply two neighbouring inputs of uint8
by their weights and add the products in 16 bits (vpmaddubsw): 255 · 128 fits, 255 · 129 does not."""
_GREATEST = 127
_TRIED = np.linspace(1.0, 0.6, 9)
"""Shares of the scale at which nothing is clipped."""


def round_in_pairs(model: onnx.ModelProto, quantized: onnx.ModelProto, linear: Sequence[NodeProto]) -> int:
    """Rounds the weights of linear maps anew, more finely than seven bits of each allow, and their biases alike.

    Rounding all weights to seven bits keeps every sum of two products within 16 bits, too, but for two greatest weights
    side by side, which hardly occur. Here `PAIR` bounds neighbours together, and each output channel's scale is the one
    of least squared error, where single weights or pairs may be clipped. Maps that share weights are left alone.

    model: in float32. quantized: the same in int8, with DequantizeLinear before each map; is changed.
    Returns how many maps were rounded anew.
    """
    weights, integers = initializers(model), initializers(quantized)
    makers = {name: node for node in quantized.graph.node for name in node.output}
    maps = {node.name: node for node in quantized.graph.node}
    uses = Counter(name for node in quantized.graph.node for name in node.input)
    rounded = 0
    for node in linear:
        values, *biases = (makers[name] for name in maps[node.name].input[1:])
        if any(uses[name] > 1 for part in (values, *biases) for name in (part.output[0], *part.input[:2])):
            continue
        steps, scale = in_pairs(matrix_of(node, weights))
        set_weight(quantized, values.input[0], np.ascontiguousarray(steps.T if is_transposed(node) else steps))
        set_weight(quantized, values.input[1], scale)
        for bias in biases:
            unit = (integers[makers[maps[node.name].input[0]].input[1]] * scale).astype(np.float32)
            exact = weights[node.input[2]].astype(np.float64)
            set_weight(quantized, bias.input[0], np.round(exact / unit).astype(np.int32))
            set_weight(quantized, bias.input[1], unit)
        rounded += 1
    return rounded


def in_pairs(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int8 (K, N) and scales float32 (N,), whose product is near the matrix (K, N).

    Rows 0 and 1, 2 and 3, … are neighbours: `PAIR` bounds the sum of their sizes in every column.
    """
    rows, columns = matrix.shape
    padded = np.zeros((rows + rows % 2, columns), np.float32)
    padded[:rows] = matrix
    sizes = np.abs(padded)
    unclipped = np.maximum(sizes.max(0) / _GREATEST, (sizes[0::2] + sizes[1::2]).max(0) / PAIR)
    unclipped = np.maximum(unclipped, np.finfo(np.float32).tiny)
    best, least, scale = np.zeros_like(padded), np.full(columns, np.inf, np.float32), unclipped
    for share in _TRIED:
        tried = (share * unclipped).astype(np.float32)
        steps = _clip(np.round(padded / tried))
        error = np.square(steps * tried - padded).sum(0)
        better = error < least
        best[:, better], least[better] = steps[:, better], error[better]
        scale = np.where(better, tried, scale)
    return best[:rows].astype(np.int8), scale.astype(np.float32)


def _clip(steps: np.ndarray) -> np.ndarray:
    """Each within int8, neighbours within `PAIR`: both lose half of what is too much."""
    sizes = np.minimum(np.abs(steps), _GREATEST)
    first, second = sizes[0::2], sizes[1::2]
    excess = np.maximum(first + second - PAIR, 0)
    from_first = np.clip(np.ceil(excess / 2), excess - second, first)
    first -= from_first
    second -= excess - from_first
    clipped: np.ndarray = np.copysign(sizes, steps)
    return clipped

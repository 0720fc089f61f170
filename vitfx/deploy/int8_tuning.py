"""What keeps int8 close to float32: biases that make up for rounding. Also weights and values of ONNX files."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import NodeProto, helper, numpy_helper
from torch import Tensor

Values = Mapping[str, np.ndarray]
_BATCH = 16


def correct_biases(
    model: onnx.ModelProto, quantized: onnx.ModelProto, linear: Sequence[NodeProto], pixels: Tensor
) -> int:
    """Adds to each quantized bias what rounding takes from the mean result: E[x]·W − E[x̂]·Ŵ.

    Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2, with means
    over the images in place of the norm's parameters.

    model: in float32. quantized: the same in int8, with DequantizeLinear before each map; is changed.
    Returns how many biases were corrected. Maps without a bias are left alone.
    """
    weights, integers = initializers(model), initializers(quantized)
    makers = {name: node for node in quantized.graph.node for name in node.output}
    maps = {node.name: node for node in quantized.graph.node}
    inputs = {node.input[0]: makers[maps[node.name].input[0]] for node in linear}
    sums: dict[str, np.ndarray] = {}
    rows: dict[str, int] = defaultdict(int)
    for values in activations(model, list(inputs), pixels):
        for name, value in values.items():
            flat = value.reshape(-1, value.shape[-1])
            scale, zero = (integers[given].astype(np.float64) for given in inputs[name].input[1:3])
            rounded = (np.clip(np.round(flat / scale) + zero, 0, 255) - zero) * scale
            both = np.stack([flat.sum(0, dtype=np.float64), rounded.sum(0)])
            sums[name] = sums.get(name, 0) + both
            rows[name] += len(flat)
    corrected = 0
    for node in linear:
        mapped = maps[node.name]
        if len(mapped.input) < 3 or mapped.input[2] not in makers:
            continue
        exact, rounded = sums[node.input[0]] / rows[node.input[0]]
        matrix, steps, zeros = (integers[given] for given in makers[mapped.input[1]].input[:3])
        axis = 0 if is_transposed(node) else 1
        coarse = (matrix.astype(np.float64) - _along(zeros, axis)) * _along(steps, axis)
        lost = exact @ matrix_of(node, weights) - rounded @ (coarse.T if is_transposed(node) else coarse)
        bias = makers[mapped.input[2]]
        unit = integers[bias.input[1]]
        value = integers[bias.input[0]] + np.round(lost / unit).astype(np.int32)
        set_weight(quantized, bias.input[0], value)
        corrected += 1
    return corrected


def activations(model: onnx.ModelProto, names: Sequence[str], pixels: Tensor) -> Iterator[Values]:
    """The named values inside the model, a few images at a time."""
    if not names:
        return
    shown = onnx.ModelProto()
    shown.CopyFrom(model)
    have = {value.name for value in shown.graph.output}
    shown.graph.output.extend(helper.make_empty_tensor_value_info(name) for name in names if name not in have)
    session = onnxruntime.InferenceSession(shown.SerializeToString(), providers=["CPUExecutionProvider"])
    (pixels_input,) = session.get_inputs()
    for batch in torch.split(pixels.cpu(), _BATCH):
        yield dict(zip(names, session.run(list(names), {pixels_input.name: batch.numpy()}), strict=True))


def initializers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {weight.name: numpy_helper.to_array(weight) for weight in model.graph.initializer}


def is_transposed(node: NodeProto) -> bool:
    return any(attribute.name == "transB" and attribute.i for attribute in node.attribute)


def matrix_of(node: NodeProto, weights: Values) -> np.ndarray:
    """(inputs, outputs)."""
    matrix = weights[node.input[1]]
    return matrix.T if is_transposed(node) else matrix


def _along(values: np.ndarray, axis: int) -> np.ndarray:
    return values[:, None] if axis == 0 else values[None]


def replace_weight(model: onnx.ModelProto, node: NodeProto, place: int, value: np.ndarray) -> None:
    """A weight of its own for this node: others may read the one that it had."""
    name, value = f"{node.name}_balanced_{place}", np.ascontiguousarray(value, np.float32)
    if node.input[place] == name:
        set_weight(model, name, value)
        return
    model.graph.initializer.append(numpy_helper.from_array(value, name))
    node.input[place] = name


def drop_unused_weights(model: onnx.ModelProto) -> None:
    """Removes initializers that no node reads."""
    used = {name for node in model.graph.node for name in node.input}
    kept = [weight for weight in model.graph.initializer if weight.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def set_weight(model: onnx.ModelProto, name: str, value: np.ndarray) -> None:
    (weight,) = (weight for weight in model.graph.initializer if weight.name == name)
    weight.CopyFrom(numpy_helper.from_array(value, name))

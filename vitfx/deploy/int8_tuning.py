"""What keeps int8 close to float32: scales that move to the weights, and biases that make up for rounding."""

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
_NORMS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
_BATCH = 16
_STRENGTH = 0.5
_TINY = 1e-5


def balance(model: onnx.ModelProto, linear: Sequence[NodeProto], pixels: Tensor) -> int:
    """Divides each channel behind a norm by a factor, and multiplies the weights of the linear maps that read it.

    The answers stay the same. Factors are max|x_c|^½ / max|w_c|^½ (SmoothQuant, Xiao et al. 2023, equation 4), so that
    no channel alone sets the scale that all inputs share. Norms are left alone that something else reads as well, or
    whose readers share their weights, or whose own weights are computed.

    model: is changed. linear: its linear maps that will be int8. pixels: (N, C, H, W), as the model takes them.
    Returns how many norms were balanced.
    """
    weights = _initializers(model)
    uses = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            uses[name].append(node)
    groups = {
        node.name: (node, readers)
        for node in model.graph.node
        if node.op_type in _NORMS and all(name in weights for name in node.input[1:])
        if (readers := _readers(node.output[0], uses, linear, model))
        if all(len(uses[reader.input[1]]) == 1 for reader in readers)
    }
    greatest: dict[str, np.ndarray] = {}
    for values in activations(model, [readers[0].input[0] for _, readers in groups.values()], pixels):
        for name, value in values.items():
            channels = np.abs(value).reshape(-1, value.shape[-1]).max(0)
            greatest[name] = np.maximum(greatest.get(name, channels), channels)
    for norm, readers in groups.values():
        matrices = [_matrix(reader, weights) for reader in readers]
        heaviest = np.max([np.abs(matrix).max(1) for matrix in matrices], axis=0)
        ratio = np.maximum(greatest[readers[0].input[0]], _TINY) / np.maximum(heaviest, _TINY)
        factor = (ratio / np.exp(np.log(ratio).mean())) ** _STRENGTH
        for place in range(1, len(norm.input)):
            _replace(model, norm, place, weights[norm.input[place]] / factor)
        for reader, matrix in zip(readers, matrices, strict=True):
            scaled = matrix * factor[:, None]
            _replace(model, reader, 1, scaled.T if _transposed(reader) else scaled)
    drop_unused_weights(model)
    return len(groups)


def correct_biases(
    model: onnx.ModelProto, quantized: onnx.ModelProto, linear: Sequence[NodeProto], pixels: Tensor
) -> int:
    """Adds to each quantized bias what rounding takes from the mean result: E[x]·W − E[x̂]·Ŵ.

    Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2, with means
    over the images in place of the norm's parameters.

    model: in float32. quantized: the same in int8, with DequantizeLinear before each map; is changed.
    Returns how many biases were corrected. Maps without a bias are left alone.
    """
    weights, integers = _initializers(model), _initializers(quantized)
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
        axis = 0 if _transposed(node) else 1
        coarse = (matrix.astype(np.float64) - _along(zeros, axis)) * _along(steps, axis)
        lost = exact @ _matrix(node, weights) - rounded @ (coarse.T if _transposed(node) else coarse)
        bias = makers[mapped.input[2]]
        unit = integers[bias.input[1]]
        value = integers[bias.input[0]] + np.round(lost / unit).astype(np.int32)
        _set(quantized, bias.input[0], value)
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


def _readers(
    name: str, uses: Mapping[str, Sequence[NodeProto]], linear: Sequence[NodeProto], model: onnx.ModelProto
) -> list[NodeProto] | None:
    """The linear maps that read this value, some of them reshaped; None where anything else does."""
    if name in {value.name for value in model.graph.output}:
        return None
    chosen = {node.name for node in linear}
    readers: list[NodeProto] = []
    for node in uses[name]:
        if node.op_type == "Reshape" and node.input[0] == name:
            behind = _readers(node.output[0], uses, linear, model)
            if behind is None:
                return None
            readers += behind
        elif node.name in chosen and node.input[0] == name:
            readers.append(node)
        else:
            return None
    return readers


def _initializers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {weight.name: numpy_helper.to_array(weight) for weight in model.graph.initializer}


def _transposed(node: NodeProto) -> bool:
    return any(attribute.name == "transB" and attribute.i for attribute in node.attribute)


def _matrix(node: NodeProto, weights: Values) -> np.ndarray:
    """(inputs, outputs)."""
    matrix = weights[node.input[1]]
    return matrix.T if _transposed(node) else matrix


def _along(values: np.ndarray, axis: int) -> np.ndarray:
    return values[:, None] if axis == 0 else values[None]


def _replace(model: onnx.ModelProto, node: NodeProto, place: int, value: np.ndarray) -> None:
    """A weight of its own for this node: others may read the one that it had."""
    name = f"{node.name}_balanced_{place}"
    model.graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(value, np.float32), name))
    node.input[place] = name


def drop_unused_weights(model: onnx.ModelProto) -> None:
    """Removes initializers that no node reads."""
    used = {name for node in model.graph.node for name in node.input}
    kept = [weight for weight in model.graph.initializer if weight.name in used]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)


def _set(model: onnx.ModelProto, name: str, value: np.ndarray) -> None:
    (weight,) = (weight for weight in model.graph.initializer if weight.name == name)
    weight.CopyFrom(numpy_helper.from_array(value, name))

"""Fewer bits for an ONNX file: static int8 for CPUs, by ONNX Runtime's own tool, and float16 for CUDA, which halves the
bytes and gets fused attention kernels that float32 does not."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import Tensor

from vitfx.deploy.export import INPUT
from vitfx.deploy.int8_tuning import activations, balance, correct_biases
from vitfx.support.errors import UserError

_LINEAR = ("Gemm", "MatMul")
_BATCH = 16
_SMALL = 1e-3


@dataclass(frozen=True)
class Quantized:
    """A model with int8 linear maps."""

    model: onnx.ModelProto  #: float32 at its ends and between linear maps
    quantized: int  #: how many linear maps are int8
    kept: tuple[str, ...]  #: the names of those that stay float32
    images: int  #: that activations were calibrated on


def to_int8(model: onnx.ModelProto, pixels: Tensor, *, keep_last: bool = True) -> Quantized:
    """Linear maps with int8 weights, a scale for each output channel, and uint8 inputs, a scale for each tensor.

    Before, scales move from activations to weights (`vitfx.deploy.int8_tuning.balance`), and afterwards biases make up
    for what rounding does to means (`correct_biases`).

    Weights use 7 of their 8 bits. CPUs without VNNI instructions add two products of an input and a weight in 16 bits,
    which 8 bits overflow: there the logits would be wrong, not coarse, and the file does not know where it will run.

    QuantizeLinear and DequantizeLinear stand around them, which ONNX Runtime fuses into int8 products. Results are
    float32, so that normalisation, attention, activation and the residual stream stay as they were. Patch embedding and
    classifier stay float32: together they take a hundredth of the time, and errors made there reach every logit. So do
    maps of less than a thousandth of the multiplications, such as those of the class token alone in the last layer: of
    what int8 cost a ViT-S (KL), four of them made a twelfth.
    keep_last: False where the model is a part of one, whose last linear map is no classifier.

    pixels: (N, C, H, W) float32 as the model takes them; their least and greatest values at each linear map set the
    scale of its input. Raises UserError where the model has no linear map to quantize.
    """
    named = _copy(model)
    for index, node in enumerate(named.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    # ONNX Runtime can't multiply by an int8 matrix for each head, which absorbed keys are.
    weights = {weight.name for weight in named.graph.initializer if len(weight.dims) == 2}
    linear = [node for node in named.graph.node if node.op_type in _LINEAR and node.input[1] in weights]
    ends = _classifier(named, linear) if keep_last else set()
    maps = [node for node in linear if node.name not in ends]
    small = _small(named, maps, pixels)
    ends |= small
    maps = [node for node in maps if node.name not in small]
    if not maps:
        raise UserError("no linear map is left that int8 would make faster: leave out `precision` int8")
    balance(named, maps, pixels)
    with tempfile.TemporaryDirectory(prefix="vitfx-") as folder, _without_advice():
        path = Path(folder) / "int8.onnx"
        quantize_static(
            # The tool moves the weights of what it is given to a file.
            _copy(named),
            path,
            _Reader(pixels),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(_LINEAR),
            nodes_to_quantize=[node.name for node in maps],
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            extra_options={"MatMulConstBOnly": True, "OpTypesToExcludeOutputQuantization": list(_LINEAR)},
        )
        quantized = onnx.load(path)
    correct_biases(named, quantized, maps, pixels)
    del quantized.metadata_props[:]
    quantized.metadata_props.extend(model.metadata_props)
    return Quantized(quantized, len(maps), tuple(sorted(ends)), len(pixels))


def _classifier(model: onnx.ModelProto, linear: list[onnx.NodeProto]) -> set[str]:
    """Names of the linear maps that no other one follows, whose results are logits."""
    makers = {value: node for node in model.graph.node for value in node.output}
    behind = [value.name for value in model.graph.output]
    names = {node.name for node in linear}
    last, seen = set[str](), set[str]()
    while behind:
        node = makers.get(behind.pop())
        if node is None or node.name in seen:
            continue
        seen.add(node.name)
        if node.name in names:
            last.add(node.name)
        else:
            behind += node.input
    return last


def _small(model: onnx.ModelProto, maps: list[onnx.NodeProto], pixels: Tensor) -> set[str]:
    """Names of the maps with less than `_SMALL` of all multiplications."""
    sizes = {weight.name: int(np.prod(weight.dims)) for weight in model.graph.initializer}
    rows: dict[str, int] = {}
    for values in activations(model, list(dict.fromkeys(node.input[0] for node in maps)), pixels[:1]):
        rows = {name: value.size // value.shape[-1] for name, value in values.items()}
    work = {node.name: rows[node.input[0]] * sizes[node.input[1]] for node in maps}
    return {name for name, count in work.items() if count < _SMALL * sum(work.values())}


class _Reader:
    """ONNX Runtime takes any class with `get_next` for a CalibrationDataReader."""

    def __init__(self, pixels: Tensor) -> None:
        self._batches: Iterator[np.ndarray] = (batch.numpy() for batch in torch.split(pixels.cpu(), _BATCH))

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._batches, None)
        return None if batch is None else {INPUT: batch}


@contextmanager
def _without_advice() -> Iterator[None]:
    """Silences the tool's advice to optimize the model first: it has been."""
    root = logging.getLogger()
    before = root.level
    root.setLevel(logging.ERROR)
    try:
        yield
    finally:
        root.setLevel(before)


def to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with float16 weights and arithmetic; its input and output stay float32, its metadata as they are."""
    converted: onnx.ModelProto = convert_float_to_float16(_copy(model), keep_io_types=True)
    return converted


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied

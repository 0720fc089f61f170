"""Fewer bits for an ONNX file: static int8 for CPUs, by ONNX Runtime's own tool; float16 for CUDA, which halves the
bytes and gets fused attention kernels that float32 does not; bfloat16, in which OpenVINO computes on some CPUs."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
from onnxruntime.transformers.float16 import convert_float_to_float16
from torch import Tensor

from vitfx.deploy.export import INPUT
from vitfx.deploy.int8_balance import balance_norms, balance_values
from vitfx.deploy.int8_choice import (
    SPARED,
    MapCost,
    dear,
    dearest,
    drop_unused,
    keep_float32,
    map_costs,
    set_nodes,
    work_of,
)
from vitfx.deploy.int8_tuning import correct_biases, initializers
from vitfx.deploy.int8_weights import round_in_pairs
from vitfx.deploy.precisions import BF16
from vitfx.graph.divergence import CLASSES, Divergence
from vitfx.support.errors import UserError
from vitfx.support.files import temporary_folder

TUNINGS = ("norms", "values", "pairs", "biases")
"""What keeps int8 near float32: see `to_int8`."""
AS_BF16 = {"precision": BF16}
"""Metadata of a file that OpenVINO is to compute in bfloat16."""
_NARROW = "_bfloat16"
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
    exact: onnx.ModelProto  #: in float32, its nodes by the same names
    maps: tuple[str, ...]  #: the names of those that are int8

    def costs(self, pixels: Tensor, divergence: Divergence = CLASSES) -> list[MapCost]:
        """What int8 costs in each map, see `vitfx.deploy.int8_choice.map_costs`. pixels: (N, C, H, W)."""
        linear = [node for node in self.exact.graph.node if node.name in self.maps]
        return map_costs(self.exact, self.model, linear, pixels, divergence)

    def sparing(self, names: Collection[str]) -> Quantized:
        """The same with more maps in float32."""
        if not names:
            return self
        return replace(
            self,
            model=keep_float32(self.exact, self.model, names),
            quantized=self.quantized - len(names),
            kept=(*self.kept, *names),
            maps=tuple(name for name in self.maps if name not in names),
        )

    def sparing_dearest(self, pixels: Tensor, divergence: Divergence = CLASSES, most: float = SPARED) -> Quantized:
        """The same with those in float32 that this helps most, if they are out of proportion.

        pixels: (N, C, H, W), on which that is measured. most: of the work that they have together.
        """
        return self.sparing(dearest(dear(self.costs(pixels, divergence)), most))


def to_int8(
    model: onnx.ModelProto, pixels: Tensor, *, keep_last: bool = True, tunings: Collection[str] = TUNINGS
) -> Quantized:
    """Linear maps with int8 weights, a scale for each output channel, and uint8 inputs, a scale for each tensor.

    Before, scales move from activations to weights, behind norms and in values (`vitfx.deploy.int8_balance`), and
    afterwards biases make up for what rounding does to means (`correct_biases`).

    Two neighbouring weights share 8 bits (`vitfx.deploy.int8_weights.round_in_pairs`). CPUs without VNNI instructions
    add two products of an input and a weight in 16 bits, which 8 bits each overflow: there the logits would be wrong,
    not coarse, and the file does not know where it will run.

    QuantizeLinear and DequantizeLinear stand around them, which ONNX Runtime fuses into int8 products. Results are
    float32, so that normalisation, attention, activation and the residual stream stay as they were. Patch embedding and
    classifier stay float32: together they take a hundredth of the time, and errors made there reach every logit. So do
    maps of less than a thousandth of the multiplications, such as those of the class token alone in the last layer: of
    what int8 cost a ViT-S (KL), four of them made a twelfth.
    keep_last: False where the model is a part of one, whose last linear map is no classifier.
    tunings: of `TUNINGS`; fewer say what each is worth. Without "pairs", each weight has 7 bits.

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
    if "norms" in tunings:
        balance_norms(named, maps, pixels)
    if "values" in tunings:
        balance_values(named, maps, pixels)
    quantized = _by_the_tool(named, maps, pixels)
    _round_for_maps_alone(quantized, maps)
    if "pairs" in tunings:
        round_in_pairs(named, quantized, maps)
    if "biases" in tunings:
        correct_biases(named, quantized, maps, pixels)
    del quantized.metadata_props[:]
    quantized.metadata_props.extend(model.metadata_props)
    names = tuple(node.name for node in maps)
    return Quantized(quantized, len(maps), tuple(sorted(ends)), len(pixels), named, names)


def _by_the_tool(model: onnx.ModelProto, maps: list[onnx.NodeProto], pixels: Tensor) -> onnx.ModelProto:
    """With QuantizeLinear and DequantizeLinear around the maps, ranges from these images."""
    with temporary_folder() as folder, _without_advice():
        path = folder / "int8.onnx"
        quantize_static(
            # The tool moves the weights of what it is given to a file.
            _copy(model),
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
        return onnx.load(path)


def _round_for_maps_alone(quantized: onnx.ModelProto, maps: list[onnx.NodeProto]) -> None:
    """Lets everything but the maps read what was not rounded.

    The tool hands a value's rounded form to all its readers, so that a map behind a Reshape would read values rounded
    twice, and could not stay float32.
    """
    makers = {value: node for node in quantized.graph.node for value in node.output}
    names = {node.name for node in maps}
    for node in quantized.graph.node:
        if node.name in names:
            continue
        for place, name in enumerate(node.input):
            rounded = makers.get(name)
            if rounded is not None and rounded.op_type == "DequantizeLinear" and rounded.input[0] in makers:
                node.input[place] = makers[rounded.input[0]].input[0]
    drop_unused(quantized)


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
    work = work_of(model, maps, pixels)
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


def to_bfloat16(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with bfloat16 matrices, which Cast widens where they are read, so that every runtime takes it.

    What it is computed in is the runtime's: bfloat16 by OpenVINO on CPUs that have it, float32 by ONNX Runtime.
    """
    narrow = _copy(model)
    names = [weight.name for weight in model.graph.initializer if weight.data_type == TensorProto.FLOAT]
    matrices = {name: value for name, value in initializers(model).items() if name in names and value.ndim > 1}
    kept = [weight for weight in narrow.graph.initializer if weight.name not in matrices]
    for name, value in matrices.items():
        bits = torch.from_numpy(value.copy()).bfloat16().view(torch.uint8).numpy().tobytes()
        kept.append(helper.make_tensor(name + _NARROW, TensorProto.BFLOAT16, value.shape, bits, raw=True))
    casts = [
        helper.make_node("Cast", [name + _NARROW], [name], f"widen_{name}", to=TensorProto.FLOAT) for name in matrices
    ]
    del narrow.graph.initializer[:]
    narrow.graph.initializer.extend(kept)
    set_nodes(narrow, [*casts, *narrow.graph.node])
    onnx.helper.set_model_props(narrow, {**{entry.key: entry.value for entry in model.metadata_props}, **AS_BF16})
    return narrow


def _copy(model: onnx.ModelProto) -> onnx.ModelProto:
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return copied

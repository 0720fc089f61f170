"""Scales move from activations to weights before both are rounded to int8: the answers stay the same in float32."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import NodeProto
from torch import Tensor

from vitfx.deploy.int8_tuning import (
    activations,
    drop_unused_weights,
    initializers,
    is_transposed,
    matrix_of,
    replace_weight,
)

_NORMS = ("LayerNormalization", "RMSNormalization", "SimplifiedLayerNormalization")
_BESIDE_VALUES = {"Attention": (4, 5), "MultiHeadAttention": (3, 6, 7)}
"""Inputs that would stand between values and result: a cache, or a bias. Masks do not."""
_STRENGTH = 0.5
_TINY = 1e-5


def balance_norms(model: onnx.ModelProto, linear: Sequence[NodeProto], pixels: Tensor) -> int:
    """Divides each channel behind a norm by a factor, and multiplies the weights of the linear maps that read it.

    The answers stay the same. Factors are max|x_c|^½ / max|w_c|^½ (SmoothQuant, Xiao et al. 2023, equation 4), so that
    no channel alone sets the scale that all inputs share. Norms are left alone that something else reads as well, or
    whose readers share their weights, or whose own weights are computed.

    model: is changed. linear: its linear maps that will be int8. pixels: (N, C, H, W), as the model takes them.
    Returns how many norms were balanced.
    """
    weights = initializers(model)
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
        matrices = [matrix_of(reader, weights) for reader in readers]
        heaviest = np.max([np.abs(matrix).max(1) for matrix in matrices], axis=0)
        factor = _factor(greatest[readers[0].input[0]], heaviest)
        for place in range(1, len(norm.input)):
            replace_weight(model, norm, place, weights[norm.input[place]] / factor)
        for reader, matrix in zip(readers, matrices, strict=True):
            scaled = matrix * factor[:, None]
            replace_weight(model, reader, 1, scaled.T if is_transposed(reader) else scaled)
    drop_unused_weights(model)
    return len(groups)


@dataclass(frozen=True)
class _Values:
    """An attention whose values one linear map writes, and whose result one reads."""

    writer: NodeProto
    reader: NodeProto
    between: tuple[str, ...]  #: what lies between them, whose last dimension has to be the same throughout


def balance_values(model: onnx.ModelProto, linear: Sequence[NodeProto], pixels: Tensor) -> int:
    """The same for an attention's result, which is linear in its values: each channel of these is divided.

    Attentions are left alone whose values or results something else reads, or whose weights are shared.

    model: is changed. linear: its linear maps that will be int8. pixels: (N, C, H, W), as the model takes them.
    Returns how many attentions were balanced.
    """
    weights = initializers(model)
    chains = _value_chains(model, linear, weights)
    greatest: dict[str, np.ndarray] = {}
    widths: dict[str, int] = {}
    for values in activations(model, [name for chain in chains for name in chain.between], pixels):
        for name, value in values.items():
            channels = np.abs(value).reshape(-1, value.shape[-1]).max(0)
            greatest[name] = np.maximum(greatest.get(name, channels), channels)
            widths[name] = value.shape[-1]
    balanced = 0
    for chain in chains:
        if len({widths[name] for name in chain.between}) > 1:
            continue
        read = matrix_of(chain.reader, weights)
        factor = _factor(greatest[chain.reader.input[0]], np.abs(read).max(1))
        written, read = matrix_of(chain.writer, weights) / factor, read * factor[:, None]
        replace_weight(model, chain.writer, 1, written.T if is_transposed(chain.writer) else written)
        if len(chain.writer.input) == 3:
            replace_weight(model, chain.writer, 2, weights[chain.writer.input[2]] / factor)
        replace_weight(model, chain.reader, 1, read.T if is_transposed(chain.reader) else read)
        balanced += 1
    drop_unused_weights(model)
    return balanced


def _factor(greatest: np.ndarray, heaviest: np.ndarray) -> np.ndarray:
    """By channel. greatest: its values' size. heaviest: the greatest weight that reads it.

    A strength of 1 would let each channel fill the range, so that images with a greater value in any of them are
    clipped.
    """
    ratio = np.maximum(greatest, _TINY) / np.maximum(heaviest, _TINY)
    factor: np.ndarray = (ratio / np.exp(np.log(ratio).mean())) ** _STRENGTH
    return factor


def _value_chains(
    model: onnx.ModelProto, linear: Sequence[NodeProto], weights: Mapping[str, np.ndarray]
) -> list[_Values]:
    makers = {name: node for node in model.graph.node for name in node.output}
    uses = defaultdict(list)
    for node in model.graph.node:
        for name in node.input:
            uses[name].append(node)
    shown = {value.name for value in model.graph.output}
    alone = {name for name, readers in uses.items() if len(readers) == 1 and name not in shown}
    maps = {node.name: node for node in linear if all(name in weights and name in alone for name in node.input[1:])}
    chains = []
    for attention in model.graph.node:
        beside = _BESIDE_VALUES.get(attention.op_type)
        if beside is None or any(attention.input[place] for place in beside if place < len(attention.input)):
            continue
        values, result = [attention.input[2]], [attention.output[0]]
        while (node := makers.get(values[-1])) is not None and node.op_type == "Reshape":
            values.append(node.input[0])
        while result[-1] in alone and (node := uses[result[-1]][0]).op_type == "Reshape":
            result.append(node.output[0])
        between = (*values, *result)
        writer = makers.get(values[-1])
        if writer is None or writer.name not in maps or not alone.issuperset(between):
            continue
        reader = uses[result[-1]][0]
        if reader.name in maps and reader.input[0] == result[-1]:
            chains.append(_Values(writer, reader, between))
    return chains


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

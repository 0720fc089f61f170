"""Which linear maps stay float32: those whose rounding costs the most for the time that int8 saves there.

As NNCF's `quantize_with_accuracy_control` it measures what each map's rounding costs by itself, but as a divergence,
which is smooth and needs no labels, and it weighs that against the map's share of the work.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import NodeProto, TensorProto, helper
from torch import Tensor

from vitfx.deploy.int8_tuning import activations, drop_unused_weights
from vitfx.graph.divergence import CLASSES, Divergence

SPARED = 0.016
"""Share of the work that may stay float32 where nothing else is asked for, which takes some two percent longer."""
_DEAR = 4.0
"""How many times as much for its work a map's rounding has to cost as that of the others does."""
_MOST_IMAGES, _FEWEST_IMAGES = 16, 4
_MOST_WORK = 4e12
"""Multiplications that measuring may take, if that leaves `_FEWEST_IMAGES`."""
_TINY = 1e-9
_IS_INT8, _EXACT = "is_int8_", "float32_"


@dataclass(frozen=True)
class MapCost:
    """A linear map."""

    name: str  #: of its node
    divergence: float  #: that int8 costs in it alone, the mean over images
    share: float  #: of all maps' multiplications


def map_costs(
    model: onnx.ModelProto,
    quantized: onnx.ModelProto,
    linear: Sequence[NodeProto],
    pixels: Tensor,
    divergence: Divergence = CLASSES,
) -> list[MapCost]:
    """What int8 costs in each map alone, on the first few images: the dearest for its share of the work first.

    model: in float32. quantized: the same in int8. linear: the maps of the first that are quantized in the second.
    pixels: (N, C, H, W), as the models take them.
    """
    work = work_of(model, linear, pixels)
    whole = sum(work.values())
    images = min(_MOST_IMAGES, max(_FEWEST_IMAGES, int(_MOST_WORK / (whole * len(linear)))))
    session = _switched(model, quantized, linear)
    pixels_input, *flags = session.get_inputs()
    given = {flag.name: np.array(False) for flag in flags} | {pixels_input.name: pixels[:images].cpu().numpy()}

    def answers(name: str | None) -> Tensor:
        switched = {} if name is None else {_IS_INT8 + name: np.array(True)}
        return torch.from_numpy(session.run(None, given | switched)[0])

    exact = answers(None)
    costs = [
        MapCost(node.name, float(divergence(exact, answers(node.name)).mean()), work[node.name] / whole)
        for node in linear
    ]
    return sorted(costs, key=lambda cost: -cost.divergence / cost.share)


def dear(costs: Sequence[MapCost]) -> list[MapCost]:
    """Those of the maps whose rounding costs much more for their work than that of the others."""
    whole = sum(cost.divergence for cost in costs)
    return [
        cost for cost in costs if cost.divergence * (1 - cost.share) > _DEAR * (whole - cost.divergence) * cost.share
    ]


def dearest(costs: Sequence[MapCost], most: float) -> tuple[str, ...]:
    """The names of those that should stay float32, in order, where these may have so great a share of the work."""
    return tuple(_within(costs, most))


def _within(costs: Sequence[MapCost], most: float) -> Iterator[str]:
    spent = 0.0
    for cost in costs:
        if spent + cost.share <= most + _TINY and cost.divergence > 0:
            spent += cost.share
            yield cost.name


def keep_float32(model: onnx.ModelProto, quantized: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """A copy of the quantized model in which the maps of these names are as in the float32 one."""
    changed = onnx.ModelProto()
    changed.CopyFrom(quantized)
    exact = {node.name: node for node in model.graph.node}
    for node in changed.graph.node:
        if node.name in names:
            node.input[:] = _exact_inputs(model, changed, exact[node.name])
    drop_unused(changed)
    return changed


def work_of(model: onnx.ModelProto, linear: Sequence[NodeProto], pixels: Tensor) -> dict[str, int]:
    """Multiplications for an image, by name: the rows that a map reads, times its weights."""
    sizes = {weight.name: int(np.prod(weight.dims)) for weight in model.graph.initializer}
    rows: dict[str, int] = {}
    for values in activations(model, list(dict.fromkeys(node.input[0] for node in linear)), pixels[:1]):
        rows = {name: value.size // value.shape[-1] for name, value in values.items()}
    return {node.name: rows[node.input[0]] * sizes[node.input[1]] for node in linear}


def _switched(
    model: onnx.ModelProto, quantized: onnx.ModelProto, linear: Sequence[NodeProto]
) -> onnxruntime.InferenceSession:
    """In float32, with an input for each map that says whether it rounds as int8 does: one session for all of them."""
    switched = onnx.ModelProto()
    switched.CopyFrom(quantized)
    exact = {node.name: node for node in linear}
    nodes: list[NodeProto] = []
    for node in switched.graph.node:
        if node.name in exact:
            flag = _IS_INT8 + node.name
            switched.graph.input.append(helper.make_tensor_value_info(flag, TensorProto.BOOL, []))
            for place, name in enumerate(_exact_inputs(model, switched, exact[node.name])):
                chosen = f"{node.name}_chosen_{place}"
                nodes.append(helper.make_node("Where", [flag, node.input[place], name], [chosen]))
                node.input[place] = chosen
        nodes.append(node)
    set_nodes(switched, nodes)
    options = onnxruntime.SessionOptions()
    # Others would make integer products of what is only rounded here.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
    return onnxruntime.InferenceSession(switched.SerializeToString(), options, providers=["CPUExecutionProvider"])


def drop_unused(model: onnx.ModelProto) -> None:
    """Removes nodes whose results nothing reads, and weights that none does."""
    used = {value.name for value in model.graph.output}
    nodes: list[NodeProto] = []
    for node in reversed(model.graph.node):
        if used.intersection(node.output):
            used.update(node.input)
            nodes.insert(0, node)
    set_nodes(model, nodes)
    drop_unused_weights(model)


def set_nodes(model: onnx.ModelProto, nodes: Sequence[NodeProto]) -> None:
    """Copies of these nodes, some of which may be the model's own, take the place of those that it has."""
    copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del model.graph.node[:]
    model.graph.node.extend(copies)


def _exact_inputs(model: onnx.ModelProto, changed: onnx.ModelProto, node: NodeProto) -> list[str]:
    """The node's inputs in float32, with its weights under names of their own: rounded ones have theirs."""
    weights = {weight.name: weight for weight in model.graph.initializer}
    have = {weight.name for weight in changed.graph.initializer}
    names = []
    for name in node.input:
        if name in weights:
            if _EXACT + name not in have:
                copied = changed.graph.initializer.add()
                copied.CopyFrom(weights[name])
                copied.name = _EXACT + name
                have.add(copied.name)
            name = _EXACT + name
        names.append(name)
    return names

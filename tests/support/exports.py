"""ONNX exports take seconds each, and tests export the same small models again and again: here each is made once."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cache

import onnx
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule
from torch.onnx._internal.exporter._registration import ONNXRegistry

from vitfx.deploy.export import OPSET, to_onnx, to_program
from vitfx.models.weights import fingerprint

EXPORTERS = (
    "deploy.export",
    "runs.prune_files",
    "deploy.deployment",
    "pruning.target_bench",
    "runs.optimize_bench",
)
"""The modules of vitfx that export. tests/deploy/test_export.py, which is of the export itself, makes each anew."""
_EXPORTED: dict[str, onnx.ModelProto] = {}
_PROGRAMS: dict[str, ExportedProgram] = {}


def export_once(module: nn.Module, example: Tensor, metadata: Mapping[str, str], opset: int = OPSET) -> onnx.ModelProto:
    """`to_onnx`, kept by what the file is made of: code, structure, weights, and what an image looks like."""
    key = _key(module, example)
    if key is None:
        return to_onnx(module, example, metadata, opset)
    key = f"{key}{opset}"
    if key not in _EXPORTED:
        _EXPORTED[key] = to_onnx(module, example, {}, opset)
    # Callers change what they are given.
    model = onnx.ModelProto()
    model.CopyFrom(_EXPORTED[key])
    onnx.helper.set_model_props(model, dict(metadata))
    return model


def program_once(module: nn.Module, example: Tensor) -> ExportedProgram:
    """`to_program`, kept likewise: writing it changes it in ways that can be repeated."""
    key = _key(module, example)
    if key is None:
        return to_program(module, example)
    if key not in _PROGRAMS:
        _PROGRAMS[key] = to_program(module, example)
    return _PROGRAMS[key]


_operators = cache(ONNXRegistry.from_torchlib)


def operators_once(opset_version: int) -> ONNXRegistry:
    """torch's table of ONNX operators, which it makes anew of a thousand functions' source code for each export."""
    table = copy.copy(_operators(opset_version))
    table.functions = {target: [*functions] for target, functions in table.functions.items()}
    return table


def _key(module: nn.Module, example: Tensor) -> str | None:
    graphs = "".join(one.code for one in module.modules() if isinstance(one, GraphModule))
    values = {**module.state_dict(), **dict(module.named_buffers())}
    if any(value.is_meta for value in values.values()):
        return None
    return f"{graphs}{type(module)}{module}{fingerprint(values)}{example.shape[1:]}{example.dtype}"

"""ONNX exports take seconds each, and tests export the same small models again and again: here each is made once."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from torch import Tensor, nn
from torch.fx import GraphModule

from vitfx.deploy.export import OPSET, to_onnx
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


def export_once(module: nn.Module, example: Tensor, metadata: Mapping[str, str], opset: int = OPSET) -> onnx.ModelProto:
    """`to_onnx`, kept by what the file is made of: code, structure, weights, and what an image looks like."""
    graphs = "".join(one.code for one in module.modules() if isinstance(one, GraphModule))
    values = {**module.state_dict(), **dict(module.named_buffers())}
    if any(value.is_meta for value in values.values()):
        return to_onnx(module, example, metadata, opset)
    key = f"{graphs}{type(module)}{module}{fingerprint(values)}{example.shape[1:]}{example.dtype}{opset}"
    if key not in _EXPORTED:
        _EXPORTED[key] = to_onnx(module, example, {}, opset)
    # Callers change what they are given.
    copy = onnx.ModelProto()
    copy.CopyFrom(_EXPORTED[key])
    onnx.helper.set_model_props(copy, dict(metadata))
    return copy

"""The unpruned model as anyone would export it: what every artifact's time is held against."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from torch import Tensor, nn
from torch.fx import GraphModule

from vitfx.deploy.export import to_onnx
from vitfx.support.errors import UserError

OF_MODULE = "torch.onnx.export of the module"
OF_GRAPH = "torch.onnx.export of the canonical graph, because that of the module itself fails"


def export_plain(
    module: nn.Module, canonical: GraphModule, example: Tensor, metadata: Mapping[str, str]
) -> tuple[onnx.ModelProto, str]:
    """The plain export, and what it is of: the user's own module, or, where torch's exporter does not take that, its
    canonical graph, which has fewer nodes and is a little faster. example: see `vitfx.deploy.export.to_onnx`."""
    try:
        return to_onnx(module, example, metadata), OF_MODULE
    except UserError:
        raise
    except Exception:  # torch's exporter takes fewer modules than the tracer, and fails in its own ways.
        return to_onnx(canonical, example, metadata), OF_GRAPH

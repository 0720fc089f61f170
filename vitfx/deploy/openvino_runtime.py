"""OpenVINO's CPU plugin, for the ONNX files that ONNX Runtime runs too. The package is optional."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from vitfx.deploy.precisions import BF16, OPENVINO
from vitfx.support.errors import UserError

_ONNX_DOMAINS = ("", "ai.onnx")


def require_openvino() -> Any:
    """The package. Raises UserError where it is not installed."""
    try:
        import openvino
    except ImportError as error:
        raise UserError("OpenVINO is not installed here: pip install 'vitfx[openvino]'") from error
    return openvino


def is_installed() -> bool:
    return importlib.util.find_spec(OPENVINO) is not None


@dataclass(frozen=True)
class OpenVinoRun:
    """One batch with its input in place; calling it runs the model and returns nothing."""

    request: Any  #: OpenVINO's InferRequest

    def __call__(self) -> None:
        self.request.infer()

    @property
    def logits(self) -> Tensor:
        """Of the last call."""
        return torch.from_numpy(self.request.get_output_tensor(0).data.copy())


class OpenVinoModel:
    """A model with one input (B, C, H, W) and one output (B, K), on the CPU: see `vitfx.deploy.runtime.Session`."""

    def __init__(self, model: Any, settings: dict[str, Any]) -> None:
        """model: OpenVINO's. settings: of its compilation."""
        openvino = require_openvino()
        if len(model.inputs) != 1 or len(model.outputs) != 1:
            raise UserError(
                f"the ONNX model has {len(model.inputs)} inputs and {len(model.outputs)} outputs: give one of each"
            )
        self.provider = f"OpenVINO {openvino.__version__.partition('-')[0]}"
        self._core, self._model, self._settings = _core(), model, settings

    @cached_property
    def _compiled(self) -> Any:
        """For any batch."""
        return self._core.compile_model(self._model, "CPU", self._settings)

    def run(self, pixels: Tensor | np.ndarray) -> Tensor:
        """(B, C, H, W) -> logits (B, K); UserError for a shape that the model does not take."""
        images = torch.as_tensor(pixels).detach().to("cpu", torch.float32).contiguous()
        try:
            (logits,) = self._compiled([images.numpy()]).values()
        except RuntimeError as error:
            raise self._refusal(images, error) from error
        return torch.from_numpy(np.array(logits))

    def bind(self, pixels: Tensor) -> OpenVinoRun:
        """Compiles the model for this batch size, as who serves it would, and runs it once. Raises as `run` does."""
        openvino = require_openvino()
        images = pixels.detach().to("cpu", torch.float32).contiguous()
        try:
            fixed = self._model.clone()
            fixed.reshape(list(images.shape))
            request = self._core.compile_model(fixed, "CPU", self._settings).create_infer_request()
            request.set_input_tensor(openvino.Tensor(images.numpy().copy()))
            request.infer()
        except RuntimeError as error:
            raise self._refusal(images, error) from error
        return OpenVinoRun(request)

    def _refusal(self, images: Tensor, error: Exception) -> UserError:
        return UserError(
            f"the ONNX model takes {self._model.inputs[0].partial_shape} and refused {list(images.shape)} "
            f"(OpenVINO: {_last_line(error)})"
        )


def open_openvino(model: Path | bytes, *, threads: int | None = None) -> OpenVinoModel:
    """Opens an ONNX file, or its bytes, on the CPU. It is computed in float32, where OpenVINO's default is bfloat16 on
    CPUs that have it; a file of `vitfx.deploy.quantize.to_bfloat16` is computed in that, there.

    threads: OpenVINO's own choice when None.
    Raises UserError where the package is missing, the file is no model, or it has operators outside the ONNX standard:
    OpenVINO reads some of ONNX Runtime's own, and gives other answers.
    """
    core = _core()
    label = "the ONNX model" if isinstance(model, bytes) else str(model)
    try:
        contents = model if isinstance(model, bytes) else model.read_bytes()
        read = core.read_model(contents)
    except (OSError, RuntimeError) as error:
        raise UserError(f"OpenVINO cannot open {label}: {_last_line(error)}") from error
    proto = onnx.load_model_from_string(contents)
    if others := _other_domains(proto):
        raise UserError(
            f"{label} has operators of {', '.join(others)}, which OpenVINO can't run: export it with `portable`"
        )
    narrow = any((entry.key, entry.value) == ("precision", BF16) for entry in proto.metadata_props) and has_bfloat16()
    hint = "bf16" if narrow else "f32"
    settings: dict[str, Any] = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    if threads is not None:
        settings["INFERENCE_NUM_THREADS"] = threads
    return OpenVinoModel(read, settings)


def has_bfloat16() -> bool:
    """Whether OpenVINO computes in bfloat16 on this CPU. Raises UserError where the package is missing."""
    return "BF16" in _core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")


def _core() -> Any:
    """The only one of this process. Raises UserError where the package is missing."""
    return _only_core(require_openvino())


@cache
def _only_core(openvino: ModuleType) -> Any:
    """Each gives the thread a stack for signals, and takes it back. Of two that end in the order in which they began,
    the second leaves freed memory there, where the next Ctrl-C is a segmentation fault."""
    return openvino.Core()


def _other_domains(model: onnx.ModelProto) -> Sequence[str]:
    return sorted({node.domain for node in model.graph.node} - set(_ONNX_DOMAINS))


def _last_line(error: Exception) -> str:
    """OpenVINO begins with the places in its own code that an error came through."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else type(error).__name__

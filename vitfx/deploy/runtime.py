"""ONNX Runtime on a chosen device, without its silent fallback to the CPU."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnxruntime
import torch
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors
from torch import Tensor

from vitfx.support.devices import is_gpu, synchronize
from vitfx.support.errors import UserError

CPU_PROVIDER = "CPUExecutionProvider"
CUDA_PROVIDER = "CUDAExecutionProvider"

_DTYPES = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16, "tensor(double)": torch.float64}
# ONNX Runtime's exceptions have no base class of their own; with IO binding they are plain RuntimeErrors.
_REFUSALS = (
    ort_errors.EngineError,
    ort_errors.EPFail,
    ort_errors.Fail,
    ort_errors.InvalidArgument,
    ort_errors.InvalidGraph,
    ort_errors.InvalidProtobuf,
    ort_errors.NoModel,
    ort_errors.NoSuchFile,
    ort_errors.NotFound,
    ort_errors.NotImplemented,
    ort_errors.RuntimeException,
    MemoryError,
    RuntimeError,
    ValueError,
)
_NO_MEMORY = ("bad_alloc", "failed to allocate memory", "out of memory", "available memory", "bfcarena", "bfc_arena")

ProviderOptions = tuple[str, dict[str, str]]


def providers(device: torch.device, *, cuda_graph: bool = False) -> list[ProviderOptions]:
    """The execution providers to ask for with their options, first choice first.

    The CPU stands behind the GPU because ONNX Runtime computes shapes there.
    """
    if not is_gpu(device):
        if cuda_graph:
            raise UserError(f"a CUDA graph was asked for on {device}: it needs a GPU")
        return [(CPU_PROVIDER, {})]
    options = {
        "device_id": str(device.index or 0),
        "enable_cuda_graph": "1" if cuda_graph else "0",
        # float32 means float32 here, as it does in torch by default.
        "use_tf32": "0",
    }
    return [(CUDA_PROVIDER, options), (CPU_PROVIDER, {})]


@dataclass(frozen=True)
class BoundRun:
    """One batch with its input and output at fixed addresses; calling it runs the model and returns nothing."""

    session: onnxruntime.InferenceSession
    binding: Any  #: ONNX Runtime's IOBinding
    pixels: Tensor  #: the input buffer on the model's device; copy new images into it to run on them
    logits: Tensor  #: the output buffer

    def __call__(self) -> None:
        self.session.run_with_iobinding(self.binding)


class Session(Protocol):
    """A model that is open on a runtime."""

    provider: str  #: the runtime's name, for reports

    def run(self, pixels: Tensor | np.ndarray) -> Tensor:
        """(B, C, H, W) -> logits (B, K) on the CPU. Raises UserError for a shape that the model does not take."""

    def bind(self, pixels: Tensor) -> Callable[[], None]:
        """A call that runs the model on this batch, with its input in place. Raises as `run` does."""


class OnnxModel:
    """A session of a model with one input (B, C, H, W) and one output (B, K)."""

    def __init__(self, session: onnxruntime.InferenceSession, device: torch.device) -> None:
        inputs, outputs = session.get_inputs(), session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1:
            raise UserError(f"the ONNX model has {len(inputs)} inputs and {len(outputs)} outputs: give one of each")
        if inputs[0].type not in _DTYPES or outputs[0].type not in _DTYPES:
            raise UserError(f"the ONNX model maps {inputs[0].type} to {outputs[0].type}: give one of floats")
        self.session = session
        self.device = device
        self.provider: str = session.get_providers()[0]  #: the execution provider that ONNX Runtime took
        self.dtype = _DTYPES[inputs[0].type]  #: of the input
        #: of each axis a number, or a name where any size is taken
        self.input_shape: tuple[int | str | None, ...] = tuple(inputs[0].shape)
        self.output_shape: tuple[int | str | None, ...] = tuple(outputs[0].shape)
        self.metadata: dict[str, str] = session.get_modelmeta().custom_metadata_map  #: `metadata_props`
        self._input, self._output = inputs[0], outputs[0]

    def run(self, pixels: Tensor | np.ndarray) -> Tensor:
        """(B, C, H, W) -> logits (B, K) on the CPU; UserError for a shape that the model does not take."""
        images = torch.as_tensor(pixels).detach().to("cpu", self.dtype)
        try:
            (logits,) = self.session.run([self._output.name], {self._input.name: images.numpy()})
        except _REFUSALS as error:
            raise self._refusal(images, error) from error
        return torch.from_numpy(logits)

    def bind(self, pixels: Tensor) -> BoundRun:
        """Fixes the input and output buffers, on the model's device, for repeated runs at this batch size.

        Runs once, which also captures the CUDA graph where one was asked for. Raises UserError as `run` does.
        """
        buffer = pixels.detach().to(self.device, self.dtype, copy=True).contiguous()
        classes = [size for size in self.output_shape[1:] if isinstance(size, int)]
        if len(classes) != len(self.output_shape) - 1:
            raise UserError(f"the ONNX model's output has the shape {list(self.output_shape)}: only the batch may vary")
        logits = torch.empty((len(buffer), *classes), dtype=_DTYPES[self._output.type], device=self.device)
        # ONNX Runtime's own stream does not wait for torch's.
        synchronize(self.device)
        binding = self.session.io_binding()
        binding.bind_input(self._input.name, *_place(buffer))
        binding.bind_output(self._output.name, *_place(logits))
        bound = BoundRun(self.session, binding, buffer, logits)
        try:
            bound()
        except _REFUSALS as error:
            raise self._refusal(buffer, error) from error
        return bound

    def _refusal(self, images: Tensor, error: Exception) -> UserError:
        if _lacks_memory(error):
            return UserError(
                f"ONNX Runtime ran out of memory on {self.device} with a batch of {list(images.shape)}: "
                "give a smaller batch, or end other programs"
            )
        reason = " ".join(str(error).split()).removeprefix("[ONNXRuntimeError] : ").removeprefix("Error in execution: ")
        return UserError(
            f"the ONNX model takes {list(self.input_shape)} and refused {list(images.shape)} (ONNX Runtime: {reason})"
        )


def open_session(
    model: Path | bytes,
    device: torch.device,
    *,
    threads: int | None = None,
    cuda_graph: bool = False,
    fixed: Mapping[str, int] | None = None,
    layouts: bool = True,
) -> OnnxModel:
    """Opens an ONNX file, or its bytes, on `device` and nowhere else.

    threads: inside one operator on the CPU; ONNX Runtime's own choice when None.
    cuda_graph: the runs become one launch. It needs a session for each batch size, with `fixed`, and `bind`.
    fixed: the size of named dimensions, such as {"batch": 8}.
    layouts: lets convolutions choose a memory layout on the CPU. Without it the other optimizations are made;
    float16 models need that: ONNX Runtime 1.31's NCHWc transformer ends the process on them.
    Raises UserError where the file is no model, and where ONNX Runtime took another provider than the asked.
    """
    if cuda_graph and not fixed:
        raise UserError("a CUDA graph was asked for without a fixed batch size: give fixed={'batch': size}")
    if isinstance(model, Path) and not model.is_file():
        raise UserError(f"{model} is not a file: give an ONNX model")
    asked = providers(device, cuda_graph=cuda_graph)
    if is_gpu(device) and torch.cuda.is_available():
        # It prints what it does not find; what counts is the provider that the session ends with.
        with contextlib.redirect_stdout(io.StringIO()):
            onnxruntime.preload_dlls()
    options = onnxruntime.SessionOptions()
    # Its threads otherwise spin on after a run and take the cores from whatever is timed next: on two cores
    # that doubled the times of models that ran in turns.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # It logs its errors before it raises them.
    options.log_severity_level = 4
    if not layouts:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    if threads is not None:
        options.intra_op_num_threads = threads
    for name, size in (fixed or {}).items():
        options.add_free_dimension_override_by_name(name, size)
    source = model if isinstance(model, bytes) else str(model)
    if isinstance(model, Path) and not _is_utf8(model):
        # ONNX Runtime takes no other paths.
        source = model.read_bytes()
    label = "the ONNX model" if isinstance(model, bytes) else str(model)
    try:
        session = onnxruntime.InferenceSession(
            source,
            options,
            providers=[name for name, _ in asked],
            provider_options=[settings for _, settings in asked],
        )
    except _REFUSALS as error:
        if _lacks_memory(error):
            raise UserError(
                f"ONNX Runtime ran out of memory on {device} while it opened {label}: end other programs, "
                "or give a smaller model"
            ) from error
        raise UserError(f"ONNX Runtime cannot open {label}: {' '.join(str(error).split())}") from error
    _require_provider(asked[0][0], session.get_providers(), device)
    return OnnxModel(session, device)


def _lacks_memory(error: Exception) -> bool:
    """Whether memory is what an exception of ONNX Runtime is about, which its class does not tell."""
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in _NO_MEMORY)


def _require_provider(asked: str, taken: Sequence[str], device: torch.device) -> None:
    if taken[0] != asked:
        raise UserError(
            f"ONNX Runtime was asked for {asked} on {device} and took {taken[0]}: "
            "install the driver and libraries that it names above, or use `device` cpu"
        )


def _place(tensor: Tensor) -> tuple[str, int, Any, tuple[int, ...], int]:
    """What io_binding needs to know of a buffer: device, its index, element type, shape, address."""
    element = {torch.float32: np.float32, torch.float16: np.float16, torch.float64: np.float64}[tensor.dtype]
    return tensor.device.type, tensor.device.index or 0, element, tuple(tensor.shape), tensor.data_ptr()


def _is_utf8(path: Path) -> bool:
    return not any("\udc80" <= character <= "\udcff" for character in str(path))

"""What is timed: a model on a runtime with a batch, ready to be called. Nothing here reads a clock."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx
import torch
from torch import Tensor

from benchmarks.contenders import Contender
from vitfx.deploy.export import BATCH
from vitfx.deploy.openvino_runtime import open_openvino
from vitfx.deploy.precisions import OPENVINO
from vitfx.deploy.quantize import to_float16
from vitfx.deploy.runtime import Session, open_session
from vitfx.support.devices import is_gpu
from vitfx.support.errors import UserError

RUNTIMES = ("torch", "torch-compile", OPENVINO, "onnxruntime")
_REASON_LENGTH = 100


class UnavailableError(Exception):
    """A model can't run this way here; the text gives the reason in a few words."""


@dataclass(frozen=True)
class Variant:
    """A way to run a model."""

    runtime: str
    device: torch.device
    half: bool = False  #: float16 inside, float32 at the ends
    cuda_graph: bool = False  #: all kernels in one launch

    @property
    def label(self) -> str:
        parts = [self.runtime, str(self.device), "fp16" if self.half else "fp32"]
        return " ".join([*parts, "graph"] if self.cuda_graph else parts)


def variants(runtimes: Sequence[str], device: torch.device) -> tuple[Variant, ...]:
    """The ways to run on this device; those of ONNX Runtime always include the CPU, which is all that OpenVINO is for
    here."""
    if unknown := sorted(set(runtimes) - set(RUNTIMES)):
        raise UserError(f"runtime {unknown[0]!r} is not one of {', '.join(RUNTIMES)}")
    ways = [Variant(name, device) for name in RUNTIMES[:2] if name in runtimes]
    if OPENVINO in runtimes:
        ways.append(Variant(OPENVINO, torch.device("cpu")))
    if "onnxruntime" in runtimes:
        ways.append(Variant("onnxruntime", torch.device("cpu")))
        if is_gpu(device):
            ways += [Variant("onnxruntime", device, half, graph) for half in (False, True) for graph in (False, True)]
    return tuple(ways)


def prepare(variant: Variant, contender: Contender, pixels: Tensor, threads: int) -> Callable[[], None]:
    """A call that runs the model once on `pixels` (B, C, H, W), with input and output in place.

    It has already been called once, so that nothing is left to compile. Raises UnavailableError.
    """
    try:
        if variant.runtime == "onnxruntime":
            return _bind(variant, contender, pixels, threads)
        if variant.runtime == OPENVINO:
            return open_openvino(contender.onnx, threads=threads).bind(pixels)
        return _torch_run(variant, contender, pixels)
    except torch.OutOfMemoryError as error:
        raise UnavailableError("out of memory") from error
    except UserError as error:
        raise UnavailableError(_shorten(str(error))) from error


def forward(variant: Variant, contender: Contender, threads: int) -> Callable[[Tensor], Tensor]:
    """pixels (B, C, H, W) on the CPU -> logits (B, K) on the CPU, for any B. Raises UnavailableError."""
    if variant.runtime in ("onnxruntime", OPENVINO):
        session: Session
        try:
            if variant.runtime == OPENVINO:
                session = open_openvino(contender.onnx, threads=threads)
            else:
                session = open_session(contender.onnx, variant.device, threads=threads)
        except UserError as error:
            raise UnavailableError(str(error)) from error
        return lambda pixels: session.run(contender.adapted(pixels))
    run = run_on(variant.device, _module(contender))
    return lambda pixels: run(contender.adapted(pixels))


def run_on(device: torch.device, module: torch.nn.Module) -> Callable[[Tensor], Tensor]:
    """pixels (B, C, H, W) on the CPU -> the module's logits (B, K) on the CPU, computed on the device."""
    module = module.to(device)

    def run(pixels: Tensor) -> Tensor:
        with torch.inference_mode():
            logits: Tensor = module(pixels.to(device))
            return logits.cpu()

    return run


def _bind(variant: Variant, contender: Contender, pixels: Tensor, threads: int) -> Callable[[], None]:
    model = contender.onnx
    if variant.half:
        model = to_float16(onnx.load_model_from_string(model)).SerializeToString()
    session = open_session(
        model,
        variant.device,
        threads=threads,
        cuda_graph=variant.cuda_graph,
        fixed={BATCH: len(pixels)},
        layouts=not variant.half,
    )
    return session.bind(pixels)


def _torch_run(variant: Variant, contender: Contender, pixels: Tensor) -> Callable[[], None]:
    module = _module(contender).to(variant.device)
    images = pixels.to(variant.device)
    # fullgraph: a model that falls back to eager code, in part or after too many shapes, does not count as compiled.
    call = torch.compile(module, fullgraph=True, dynamic=False) if variant.runtime == "torch-compile" else module

    def run() -> None:
        with torch.inference_mode():
            call(images)

    try:
        run()
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        if call is module:
            raise
        # Whatever the compiler fails on, the other rows are still worth having.
        raise UnavailableError(_shorten(_reason(error))) from error
    return run


def _module(contender: Contender) -> torch.nn.Module:
    if contender.module is None:
        raise UnavailableError(_shorten(contender.no_module))
    return contender.module


def _reason(error: Exception) -> str:
    """The line that names the cause; the compiler's first line only says which backend raised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].endswith("raised:"):
        return lines[1]
    return lines[0] if lines else type(error).__name__


def _shorten(text: str) -> str:
    return text if len(text) <= _REASON_LENGTH else text[: _REASON_LENGTH - 1] + "…"

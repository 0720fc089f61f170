"""ONNX Runtime's part of step 3: its CUDA and TensorRT providers where they are installed, and never another instead.

A session is opened so that nothing may run on the CPU. Where ONNX Runtime refuses that, the row says so and why, and
the session is opened with the CPU behind the provider, which must still be the first.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.context import Context, Figures
from benchmarks.gpu.models import Subject
from benchmarks.gpu.plans import SUBLAYERS
from benchmarks.gpu.timing import Run
from benchmarks.gpu.variants import Cell, Variant, inputs_for, record_times
from vitfx.support.devices import is_gpu, synchronize

CPU, CUDA, TENSORRT = "CPUExecutionProvider", "CUDAExecutionProvider", "TensorrtExecutionProvider"
LABELS = {CPU: "onnxruntime cpu", CUDA: "onnxruntime cuda", TENSORRT: "onnxruntime tensorrt"}


class NotHere(Exception):
    """The provider is not installed, or gives way to another; the sentence says which."""


def run(context: Context, subject: Subject, variants: Sequence[Variant], rows: list[Figures]) -> None:
    gpu = is_gpu(context.device)
    largest = max(variant.share for variant in variants)
    chosen = [
        variant
        for variant in variants
        if variant.share == 0 or (variant.share == largest and variant.kind != SUBLAYERS)
    ]
    chosen, batches = chosen[: context.sizes.exported], context.sizes.batches[: 2 if gpu else 1]
    models: dict[str, bytes] = {}
    ways = [(provider, half) for half in (True, False) for provider in (CUDA, TENSORRT)]
    for (provider, half), batch in product(ways if gpu else [*ways, (CPU, False)], batches):
        cell = Cell(subject.name, "fp16" if half else "fp32", batch, LABELS[provider])
        missing = missing_provider(provider)
        if missing is None and provider != CPU and not gpu:
            missing = f"{provider} needs a GPU, and this is {context.device}"
        if missing is not None:
            rows.append({**cell.facts(), "unavailable": missing})
        else:
            context.attempt(rows, cell.facts(), partial(_time, context, subject, cell, provider, chosen, models))


def missing_provider(provider: str) -> str | None:
    """Why there is none; None where there is one, as far as ONNX Runtime says."""
    try:
        import onnxruntime
    except ImportError as error:
        return f"ONNX Runtime is not installed ({error})"
    if provider not in onnxruntime.get_available_providers():
        return f"ONNX Runtime {onnxruntime.__version__} is installed without {provider}"
    return None


def _time(
    context: Context,
    subject: Subject,
    cell: Cell,
    provider: str,
    variants: Sequence[Variant],
    models: dict[str, bytes],
    row: Figures,
) -> None:
    inputs = [pixels.float() for pixels in inputs_for(context, subject, cell)]
    runs: dict[str, Run] = {}
    row["seconds_to_open"], row["needs_the_cpu"] = {}, {}
    for variant in variants:
        key = f"{variant.name} {cell.precision}"
        if key not in models:
            models[key] = exported(variant, subject.pixels, half=cell.precision == "fp16")
        began = time.perf_counter()
        bound, refused = bind(models[key], provider, inputs[0], context.device, half=cell.precision == "fp16")
        row["seconds_to_open"][variant.name] = time.perf_counter() - began
        if refused:
            row["needs_the_cpu"][variant.name] = refused
        runs[variant.name] = bound
    record_times(context, row, runs, inputs, {variant.name: variant.flops for variant in variants})


def exported(variant: Variant, pixels: Tensor, *, half: bool) -> bytes:
    """After the exact rewrites, in the standard's operators, which every provider knows."""
    from vitfx.deploy.deployment import default_deployment, deploy, read_rewrites
    from vitfx.deploy.quantize import to_float16

    deployment = default_deployment(read_rewrites("all"), torch.device("cpu"), portable=True)
    model = deploy(variant.graph_module, deployment, pixels[:2], {}).model
    return bytes((to_float16(model) if half else model).SerializeToString())


def bind(model: bytes, provider: str, example: Tensor, device: torch.device, *, half: bool) -> tuple[Run, str | None]:
    """A run on the provider with input and output on the device; and why it can't do without the CPU, if so.

    Raises NotHere where ONNX Runtime takes another provider.
    """
    from vitfx.deploy.runtime import OnnxModel

    refused = None
    try:
        session = _session(model, provider, example, device, half=half, alone=True)
    except Exception as error:  # ONNX Runtime's exceptions have no base class of their own.
        refused = " ".join(str(error).split())[:300]
        session = _session(model, provider, example, device, half=half, alone=False)
    if session.get_providers()[0] != provider:
        raise NotHere(f"ONNX Runtime was asked for {provider} and took {session.get_providers()[0]}")
    bound = OnnxModel(session, device).bind(example)

    def call(pixels: Tensor) -> object:
        bound.pixels.copy_(pixels)
        # ONNX Runtime's stream does not wait for torch's.
        synchronize(device)
        bound()
        return bound.logits

    return call, refused


def _session(model: bytes, provider: str, example: Tensor, device: torch.device, *, half: bool, alone: bool) -> Any:
    import onnxruntime

    if is_gpu(device):
        onnxruntime.preload_dlls()
    options = onnxruntime.SessionOptions()
    options.add_free_dimension_override_by_name("batch", len(example))
    if alone and provider != CPU:
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    if half:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    index = str(device.index or 0)
    settings = {
        CPU: {},
        CUDA: {"device_id": index, "use_tf32": "0"},
        TENSORRT: {"device_id": index, "trt_fp16_enable": str(half)},
    }
    behind = [] if alone else [name for name in (CUDA, CPU) if name != provider]
    asked = [(provider, settings[provider]), *((name, settings[name]) for name in behind)]
    return onnxruntime.InferenceSession(model, options, providers=asked)

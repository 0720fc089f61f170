"""The runtimes that ONNX files run on, by name."""

from __future__ import annotations

from pathlib import Path

import torch

from vitfx.deploy.openvino_runtime import open_openvino, require_openvino
from vitfx.deploy.precisions import OPENVINO
from vitfx.deploy.runtime import Session, open_session
from vitfx.support.devices import is_gpu
from vitfx.support.errors import UserError


def check_runtime(runtime: str, device: torch.device) -> None:
    """Raises UserError where it is not installed, or does not run on the device."""
    if runtime == OPENVINO:
        require_openvino()
        if is_gpu(device):
            raise UserError(f"OpenVINO runs on the CPU, not on {device}: give `device` cpu, or `runtime` onnxruntime")


def open_on(
    runtime: str, model: Path | bytes, device: torch.device, *, layouts: bool = True, threads: int | None = None
) -> Session:
    """A session. layouts: as `vitfx.deploy.runtime.open_session` has it. Raises UserError as both runtimes do."""
    if runtime == OPENVINO:
        return open_openvino(model, threads=threads)
    return open_session(model, device, layouts=layouts, threads=threads)

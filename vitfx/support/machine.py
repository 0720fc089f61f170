"""What a measurement was made with: versions and hardware."""

from __future__ import annotations

import importlib
import os
import platform
from pathlib import Path
from typing import Any

import torch
import torchvision

from vitfx.support.devices import gpu_names
from vitfx.version import VERSION

_DECISIVE = (
    "avx2",
    "avx512f",
    "avx_vnni",
    "avx512_vnni",
    "avx512_bf16",
    "amx_int8",
    "amx_bf16",
    "asimd",
    "i8mm",
    "bf16",
)


def environment() -> dict[str, Any]:
    """Versions and hardware, ready for JSON. Memory in GiB; None for what is unknown and packages not installed."""
    return {
        "vitfx": VERSION,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "torchvision": str(torchvision.__version__),
        "onnx": _version("onnx"),
        "onnxruntime": _version("onnxruntime"),
        "openvino": _version("openvino"),
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "cpu_features": cpu_features(),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "memory_gib": memory_gib(),
        "gpus": gpu_names(),
    }


def _version(package: str) -> str | None:
    # Imported here, because training and discovery do without ONNX.
    try:
        return str(importlib.import_module(package).__version__)
    except ImportError:
        return None


def cpu_model() -> str:
    """The processor's name as its maker gives it, or its architecture where that is unknown."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip().lower() in ("model name", "hardware", "cpu model") and value.strip():
                return value.strip()
    return platform.processor() or platform.machine()


def cpu_features() -> list[str]:
    """Which of the instructions it has that decide how fast products are, in the widest vectors and in few bits.

    Virtual machines of one processor's name differ in them, by twice the time. Known on Linux; elsewhere what torch
    compiled its vector kernels for.
    """
    cpuinfo = Path("/proc/cpuinfo")
    words = set(cpuinfo.read_text(errors="replace").split()) if cpuinfo.is_file() else set()
    return [name for name in _DECISIVE if name in words] or [torch.backends.cpu.get_cpu_capability().lower()]


def usable_cores() -> int:
    """The logical cores that this process may use; in a container they can be fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_gib() -> float | None:
    try:
        pages = os.sysconf("SC_PHYS_PAGES")
        size = os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        # Windows has no sysconf.
        return None
    return round(pages * size / 2**30, 1)


def load_average() -> float | None:
    """How many threads wanted a core over the last minute, None where that is unknown."""
    return os.getloadavg()[0] if hasattr(os, "getloadavg") else None

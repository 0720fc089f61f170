"""Mixed precision: which numbers a training calculates with, and whether they are faster where it runs."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vitfx.support.devices import is_gpu
from vitfx.support.timing import ratio, time_interleaved

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

WORTH = 0.9
"""bf16 is taken on a CPU where it needs less than this share of fp32's time: for less its rounding is not worth it."""
_HOPELESS = 2.0
"""Above this share the first step is enough to tell."""


def autocast(device: torch.device, precision: str) -> torch.autocast:
    return torch.autocast(device.type, TYPES[precision], enabled=precision != "fp32")


def make_scaler(device: torch.device, precision: str) -> torch.amp.GradScaler:
    """Scales the loss for fp16, whose smallest gradients would else be 0; does nothing for other precisions."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def pick_precision(asked: str, model: nn.Module, images: Tensor, classes: int) -> tuple[str, str]:
    """The precision, and why, as a sentence. asked: one of `vitfx.training.config.PRECISIONS`.

    auto on a GPU: bf16 where it calculates with that, else fp16; on a CPU what a few steps on `images` (B, C, H, W)
    show to be faster.
    """
    if asked != "auto":
        return asked, f"precision: {asked}, as asked for"
    if is_gpu(images.device):
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "precision: bf16"
        return "fp16", "precision: fp16, because this GPU has no bf16"
    share = _time_share(model, images, classes)
    if share < WORTH:
        return "bf16", f"precision: bf16, a step needs {share:.2f} of fp32's time on this CPU"
    return "fp32", f"precision: fp32, because in bf16 a step needs {share:.2f} of its time on this CPU"


def _time_share(model: nn.Module, images: Tensor, classes: int) -> float:
    """bf16's time against fp32's, forward and backward, the median of interleaved steps."""
    trial = copy.deepcopy(model).train()
    labels = torch.arange(len(images)) % classes
    runs: dict[str, Callable[[], None]] = {
        name: partial(_step, trial, images, labels, name) for name in ("fp32", "bf16")
    }
    found = 0.0
    for rounds in (1, 3):
        times = time_interleaved(runs, warmup=1, rounds=rounds)
        found = ratio(times["bf16"], times["fp32"]).paired
        if found > _HOPELESS:
            # Of a CPU without bf16 one step may take half a minute.
            break
    return found


def _step(model: nn.Module, images: Tensor, labels: Tensor, precision: str) -> None:
    with autocast(images.device, precision):
        loss = cross_entropy(model(images).float(), labels)
    loss.backward()

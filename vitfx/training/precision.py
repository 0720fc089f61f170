"""Mixed precision: which number format a training uses, and whether it is faster on this machine."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from vitfx.support.devices import is_gpu
from vitfx.support.timing import ratio, time_interleaved

TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

WORTH = 0.9
"""On a CPU bf16 has to bring a step below this share of its time in fp32: less is not worth the rounding."""
_HOPELESS = 2.0
"""Above this share the first product or step decides."""
_SIDE = 256
"""Of the square matrices whose product is tried first: a whole step in bf16 can take minutes where a CPU has none."""


_MOST_PAIRS = 2**17
"""Of tokens, whose scores are kept for the way back: some 360 tokens. Attention over more stays torch's."""


@contextmanager
def autocast(device: torch.device, precision: str) -> Iterator[None]:
    """Runs in the precision; in bf16 on a CPU attention is computed by `AttentionByProducts`."""
    with torch.autocast(device.type, TYPES[precision], enabled=precision != "fp32"):
        if precision != "bf16" or is_gpu(device):
            yield
            return
        with AttentionByProducts():
            yield


class AttentionByProducts(TorchFunctionMode):
    """Attention as two matrix products and a softmax, in place of torch's fused kernel.

    On a CPU in bf16 that kernel takes 1.7 to 5 times as long for 17 to 577 tokens, forward and backward; in fp32 it is
    as fast. Attention that is causal, drops scores, groups queries or has very many tokens is left to it.
    """

    def __torch_function__(
        self, func: Any, types: Sequence[Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        given = dict(kwargs or {})
        if func is F.scaled_dot_product_attention:
            values = dict(zip(("query", "key", "value", "attn_mask", "dropout_p", "is_causal"), args, strict=False))
            values |= given
            if not any(values.get(name) for name in ("dropout_p", "is_causal", "enable_gqa")):
                q, k, v = (values[name] for name in ("query", "key", "value"))
                if q.shape[-2] * k.shape[-2] <= _MOST_PAIRS:
                    return _by_products(q, k, v, values.get("attn_mask"), values.get("scale"))
        return func(*args, **given)


def _by_products(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
    scores = q @ k.transpose(-2, -1) * (q.shape[-1] ** -0.5 if scale is None else scale)
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    return scores.softmax(-1) @ v


def make_scaler(device: torch.device, precision: str) -> torch.amp.GradScaler:
    """Scales the loss for fp16, so that small gradients do not become 0; does nothing for other precisions."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


def pick_precision(asked: str, model: nn.Module, images: Tensor) -> tuple[str, str]:
    """The precision and the reason for it, as a sentence.

    asked: one of `vitfx.training.config.PRECISIONS`; auto is bf16 on a GPU that has it, else fp16, and on a CPU the
    faster in a few steps on `images` (B, C, H, W); none is taken where one product in bf16 takes twice as long.
    """
    if asked != "auto":
        return asked, f"precision: {asked}, as requested"
    if is_gpu(images.device):
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16", "precision: bf16"
        return "fp16", "precision: fp16, because this GPU has no bf16"
    share = _product_share()
    if share > _HOPELESS:
        return "fp32", f"precision: fp32, a matrix product takes {share:.2f} times as long in bf16 on this CPU"
    share = _time_share(model, images)
    if share < WORTH:
        return "bf16", f"precision: bf16, a step takes {share:.2f} of its time in fp32 on this CPU"
    return "fp32", f"precision: fp32, a step takes {share:.2f} times as long in bf16 on this CPU"


def _product_share() -> float:
    """The time of a matrix product in bf16 divided by that in fp32."""
    parts = {name: torch.ones(_SIDE, _SIDE, dtype=TYPES[name]) for name in ("fp32", "bf16")}
    runs = {name: partial(_square, part) for name, part in parts.items()}
    times = time_interleaved(runs, warmup=1, rounds=5)
    return ratio(times["bf16"], times["fp32"]).paired


def _square(part: Tensor) -> None:
    part @ part


def _time_share(model: nn.Module, images: Tensor) -> float:
    """The time of a step in bf16 divided by that in fp32, forward and backward, the median of interleaved steps."""
    trial = copy.deepcopy(model).train()
    runs: dict[str, Callable[[], None]] = {name: partial(_step, trial, images, name) for name in ("fp32", "bf16")}
    share = 0.0
    for rounds in (1, 3):
        times = time_interleaved(runs, warmup=1, rounds=rounds)
        share = ratio(times["bf16"], times["fp32"]).paired
        if share > _HOPELESS:
            break
    return share


def _step(model: nn.Module, images: Tensor, precision: str) -> None:
    with autocast(images.device, precision):
        loss = model(images).float().square().mean()
    torch.autograd.backward(loss)

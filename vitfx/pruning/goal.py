"""What a user asks of a pruned model, and on which runtime."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, replace
from typing import Any

from vitfx.deploy.precisions import FP16, FP32, ONNX_RUNTIME, OPENVINO, PRECISIONS
from vitfx.graph.kinds import WORDS
from vitfx.support.devices import GPU
from vitfx.support.errors import UserError

SPEEDUP, PARAMETERS, FLOPS, DROP, KL = "target-speedup", "target-params", "target-flops", "max-drop", "max-kl"
GOALS = (SPEEDUP, PARAMETERS, FLOPS, DROP, KL)
PRICED = (SPEEDUP, PARAMETERS, FLOPS)
"""Goals that limit what the model costs; the others limit how far its answers may drift."""
PROMISED = 0.03
"""The share by which a measured speed-up may fall short of the one asked for."""


def reaches(measured: float, asked: float) -> bool:
    """Whether a measured speed-up is within `PROMISED` of the one asked for."""
    return measured >= (1 - PROMISED) * asked


@dataclass(frozen=True)
class Goal:
    """What the pruned model must reach. Both limits, max-drop and max-kl, are measured on held-out images."""

    kind: str  #: one of `GOALS`, which are names of options
    #: target-speedup: the unpruned model's time over the pruned one's; target-params, target-flops: the share to keep;
    #: max-drop: points of top-1; max-kl: nats an image
    value: float

    def __post_init__(self) -> None:
        """Raises UserError, naming the parameter and its value."""
        name = self.parameter
        if not math.isfinite(self.value):
            raise UserError(f"{name} {self.value} is not a number to aim for: give a finite one")
        if self.kind == SPEEDUP and self.value <= 1:
            raise UserError(f"{name} {self.value:g} is not faster: give a number above 1, such as 1.5")
        if self.kind in (PARAMETERS, FLOPS) and not 0 < self.value < 1:
            raise UserError(f"{name} {self.value:g} is not a share to keep: give a number from 0 to 1")
        if self.kind in (DROP, KL) and self.value <= 0:
            raise UserError(f"{name} {self.value:g} allows nothing: give a number above 0")

    @property
    def parameter(self) -> str:
        """Its name in errors, see `vitfx.support.errors.UserError`."""
        return f"`{self.kind.replace('-', '_')}`"

    @property
    def priced(self) -> bool:
        return self.kind in PRICED

    def shortfall(self, measured: float, task: str = "classes") -> str | None:
        """What was measured instead, in words; None where that meets the goal.

        measured: a speed-up, the share that is left, points that are lost, or the divergence. task: the kind of answers
        """
        if reaches(measured, self.value) if self.kind == SPEEDUP else measured <= self.value:
            return None
        amounts = {
            SPEEDUP: f"{measured:.2f}×",
            DROP: f"{measured:.3g} points lost",
            KL: WORDS[task].amount(f"{measured:.3g}"),
        }
        return f"measured {amounts.get(self.kind, f'{100 * measured:.6g}%')}"

    def words(self, task: str) -> str:
        """For answers of this kind."""
        if self.kind == KL and task != "classes":
            return f"{WORDS[task].amount(f'at most {self.value:g}')} from the original"
        return str(self).replace("top-1", WORDS[task].metric or "top-1")

    def __str__(self) -> str:
        sentences = {
            SPEEDUP: f"{self.value:g}× faster",
            PARAMETERS: f"{100 * self.value:g}% of the parameters",
            FLOPS: f"{100 * self.value:g}% of the FLOPs",
            DROP: f"at most {self.value:g} point{'' if self.value == 1 else 's'} of top-1 lost",
            KL: f"at most {self.value:g} nats from the original",
        }
        return sentences[self.kind]


def default_goal(*, labelled: bool) -> Goal:
    """What a user gets who asks for nothing: as fast as possible at little cost, by labels where there are some."""
    return Goal(DROP, 1.0) if labelled else Goal(KL, 0.02)


@dataclass(frozen=True)
class Target:
    """The runtime that times are measured on."""

    device: str = "cpu"  #: by torch's name
    batch: int = 8  #: images at a time
    #: of every file there; the plain export is in float32 beside int8, and else in the same
    precision: str = FP32
    align: int = 1  #: pruned MLPs keep a multiple of this many neurons, for kernels that are fast only at such widths
    runtime: str = ONNX_RUNTIME  #: or `OPENVINO`, which runs on the CPU

    def __post_init__(self) -> None:
        """Raises UserError."""
        if self.align < 1:
            raise UserError(f"`align` is {self.align}: give 1 or more, such as 8")

    def in_precision(self, precision: str) -> Target:
        """The same target, with widths aligned as this precision needs."""
        return replace(self, precision=precision, align=_default_align(precision))

    def to_json(self) -> dict[str, Any]:
        precision = {} if self.precision == FP32 else {"precision": self.precision}
        align = {} if self.align == 1 else {"align": self.align}
        runtime = {} if self.runtime == ONNX_RUNTIME else {"runtime": self.runtime}
        return {"device": self.device, "batch": self.batch, **precision, **align, **runtime}

    def __str__(self) -> str:
        precision = "" if self.precision == FP32 else f":{self.precision}"
        align = "" if self.align == _default_align(self.precision) else f" (widths in multiples of {self.align})"
        place = OPENVINO if self.runtime == OPENVINO else self.device
        return f"{place}{precision}:batch={self.batch}{align}"


def _default_align(precision: str) -> int:
    """Tensor cores take eight float16 numbers at once."""
    return 8 if precision == FP16 else 1


def parse_target(text: str) -> Target:
    """`cpu`, `cpu:batch=8`, `cuda:0:fp16:batch=1`, `openvino:int8`: a device by torch's name or `OPENVINO`, a precision
    and a batch size. Widths are aligned as the precision needs. Raises UserError."""
    match = re.fullmatch(
        r"(?P<device>[a-z]+(:\d+)?)(:(?P<precision>fp\d+|bf\d+|int\d+))?(:batch=(?P<batch>\d+))?", text
    )
    batch = Target.batch if match is None or match["batch"] is None else int(match["batch"])
    precision = (match and match["precision"]) or FP32
    if match is None or batch < 1 or precision not in PRECISIONS:
        raise UserError(
            f"`target` {text} is not a target: give a device and a batch size such as cpu:batch=8, cpu:int8:batch=8, "
            f"{OPENVINO}:batch=8, {OPENVINO}:bf16:batch=8 or {GPU}:fp16:batch=1"
        )
    if match["device"] == OPENVINO:
        return Target(batch=batch, runtime=OPENVINO).in_precision(precision)
    return Target(match["device"], batch).in_precision(precision)

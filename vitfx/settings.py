"""What a run of the compiler is asked to do, checked once."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from vitfx.ablation import ABLATIONS
from vitfx.corruption import CORRUPTIONS
from vitfx.errors import UserError

METHODS = ("acdc",)


@dataclass(frozen=True)
class Settings:
    """tau, max_kl: nats an image, see `vitfx.acdc.Limits`. samples: calibration images. paths: groups an MLP."""

    tau: float = 0.05
    method: str = "acdc"
    ablation: str = "mean"
    corruption: str = "swap"
    samples: int = 128
    paths: int = 8
    max_kl: float = math.inf
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises UserError, naming the option and its value."""
        for name, known in (("method", METHODS), ("ablation", ABLATIONS), ("corruption", CORRUPTIONS)):
            if getattr(self, name) not in known:
                raise UserError(f"--{name} {getattr(self, name)} is not known: choose one of {', '.join(known)}")
        for name, kind in (("tau", float), ("max_kl", float), ("samples", int), ("paths", int), ("seed", int)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
                raise UserError(f"{name} is {value!r}: give a {'whole ' if kind is int else ''}number")
        if not (math.isfinite(self.tau) and self.tau >= 0):
            raise UserError(f"--tau {self.tau} is not a threshold: give a finite number of nats, 0 or more")
        if not self.max_kl >= 0:
            raise UserError(f"--max-kl {self.max_kl} is not a limit: give a number of nats, 0 or more")
        for name, least in (("samples", 2), ("paths", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise UserError(f"--{name} {getattr(self, name)} is too small: give {least} or more")

    def to_json(self) -> dict[str, Any]:
        """Without infinity, which JSON does not have: no limit is null."""
        record = asdict(self)
        record["max_kl"] = None if math.isinf(self.max_kl) else self.max_kl
        return record

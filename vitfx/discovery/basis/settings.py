"""What a run of the compiler is asked to do, checked once."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vitfx.circuits.edge_graph import GRANULARITIES
from vitfx.discovery.basis.ablation import ABLATIONS
from vitfx.discovery.basis.corruption import CORRUPTIONS
from vitfx.discovery.basis.metric import METRICS
from vitfx.support.errors import UserError

METHODS = ("acdc", "eap-acdc", "eap", "eap-ig", "magnitude", "taylor", "random")
RANKING = ("eap", "eap-ig", "magnitude", "taylor", "random")
"""Methods that score all edges at once: what scores less than τ goes, or the least until enough FLOPs are gone."""


@dataclass(frozen=True)
class Settings:
    """tau, max_kl: nats an image, see `vitfx.discovery.basis.protocol.Limits`. order: of a reader's parents, in ACDC.
    metric: what EAP and EAP-IG follow; steps: EAP-IG's runs. remove: for ranking methods, in place of τ: the share to
    be removed, of the FLOPs on the block and the head graph, of the edges on the others. samples: calibration images.
    paths: groups an MLP.
    """

    tau: float = 0.05
    method: str = "acdc"
    granularity: str = "head"
    order: str = "attribution"
    metric: str = "kl"
    steps: int = 5
    remove: float | None = None
    ablation: str = "mean"
    corruption: str = "swap"
    samples: int = 128
    paths: int = 8
    max_kl: float = math.inf
    seed: int = 0

    def __post_init__(self) -> None:
        """Raises UserError, naming the option and its value."""
        for name, known in (
            ("method", METHODS),
            ("granularity", GRANULARITIES),
            ("order", ORDERS),
            ("metric", METRICS),
            ("ablation", ABLATIONS),
            ("corruption", CORRUPTIONS),
        ):
            if getattr(self, name) not in known:
                raise UserError(f"--{name} {getattr(self, name)} is not known: choose one of {', '.join(known)}")
        numbers = [(name, float) for name in ("tau", "max_kl", *(() if self.remove is None else ("remove",)))]
        for name, kind in (*numbers, *((name, int) for name in ("samples", "paths", "steps", "seed"))):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
                raise UserError(f"{name} is {value!r}: give a {'whole ' if kind is int else ''}number")
        if not (math.isfinite(self.tau) and self.tau >= 0):
            raise UserError(f"--tau {self.tau} is not a threshold: give a finite number of nats, 0 or more")
        if not self.max_kl >= 0:
            raise UserError(f"--max-kl {self.max_kl} is not a limit: give a number of nats, 0 or more")
        if self.remove is not None and self.method not in RANKING:
            raise UserError(f"--remove is for the methods that rank, {self.method} decides by --tau: leave it out")
        if self.method in RANKING and not math.isinf(self.max_kl):
            raise UserError(f"--max-kl is for methods that measure KL, {self.method} ranks: leave it out")
        if self.remove is not None and not 0 <= self.remove < 1:
            raise UserError(f"--remove {self.remove} is not a share: give a number from 0 to 1")
        for name, least in (("samples", 2), ("paths", 1), ("steps", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise UserError(f"--{name} {getattr(self, name)} is too small: give {least} or more")
        if self.seed >= 2**63:
            raise UserError(f"--seed {self.seed} is too large: give less than 2 to the power of 63")

    @property
    def threshold(self) -> str:
        """What decides, as a person reads it."""
        return f"τ = {self.tau:g}" if self.remove is None else f"a share of {self.remove:g} to remove"

    def to_json(self) -> dict[str, Any]:
        """Without infinity, which JSON does not have: no limit is null."""
        record = asdict(self)
        record["max_kl"] = None if math.isinf(self.max_kl) else self.max_kl
        return record

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> Settings:
        """Raises UserError for anything but what `to_json` makes, such as the settings of a run for a goal."""
        try:
            if record["method"] == "goal":
                raise UserError(
                    f"the circuit was found for --{record['goal']} {record['value']} and holds no discovery to repeat: "
                    "give that goal again in place of the circuit"
                )
            return Settings(**{**record, "max_kl": math.inf if record["max_kl"] is None else record["max_kl"]})
        except (TypeError, KeyError) as error:
            raise UserError(
                f"the circuit's settings can't be read ({error}): give a circuit that vitfx wrote"
            ) from error


ORDERS = ("attribution", "reverse", "forward")
"""attribution: the least attributed first. reverse: from the latest writer to the earliest, as the paper's own code has
it. forward: from the earliest."""

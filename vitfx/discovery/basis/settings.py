"""The options of a discovery, checked once, and the values that they can have. Imports no algorithm."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from vitfx.circuits.circuit import GRANULARITIES
from vitfx.graph.kinds import KINDS
from vitfx.support.errors import UserError

MEASURING = ("acdc", "eap-acdc")
"""Methods that measure the KL divergence that removals cost and decide edge by edge: a run of theirs can be resumed."""
SINGLE = ("eap", "relp", "eap-ig", "eap-ig-activations", "magnitude", "taylor", "random")
"""Methods that score all edges once, by themselves."""
RANKING = (*SINGLE, "ensemble")
"""Those and the mean of several: edges below τ are removed, or the least important until enough FLOPs are gone."""
EDGE_PRUNING = "edge-pruning"
"""Learns which edges to keep, when a share of them is to go."""
METHODS = (*MEASURING, *RANKING, EDGE_PRUNING)
INTEGRATING = ("eap-ig", "eap-ig-activations", "ensemble")
"""Methods that take `Settings.steps`."""
DIFFERENTIATING = ("eap", "relp", *INTEGRATING)
"""Methods that take `Settings.metric`."""
STARTS = ("eap", "eap-ig", "equal")
"""What edge pruning's gates start from: an attribution, or all alike as in the paper."""
OF_EDGE_PRUNING = ("gate_steps", "learning_rate", "gate_start")
"""The settings that it alone has."""
ORDERS = ("attribution", "reverse", "forward")
"""attribution: least attributed first. reverse: from the latest writer to the earliest, as the paper's code does.
forward: from the earliest writer."""
METRICS = ("kl", "loss", "logit-difference")
ABLATIONS = ("zero", "mean", "position-mean", "resample")
CORRUPTIONS = ("swap", "noise", "blur", "shuffle", "mean-patch", "same-class")


def check_threshold(method: str | None) -> None:
    """Raises UserError for a method that takes no τ."""
    if method == EDGE_PRUNING:
        raise UserError(f"`tau` is not for {method}, which learns a circuit of a given size: give `remove`")


@dataclass(frozen=True)
class Settings:
    """Of a discovery. Raises UserError, naming the option and its value."""

    tau: float = 0.05  #: an edge is removed if that raises D_KL(G‖H) by less, nats an image
    method: str = "acdc"
    granularity: str = "head"
    order: str = "attribution"  #: in which ACDC asks about a reader's edges
    metric: str = "kl"  #: that EAP, RelP and EAP-IG differentiate
    steps: int = 5  #: of EAP-IG's integral
    ensemble: tuple[str, ...] = ("eap", "relp", "eap-ig")  #: methods of `SINGLE` whose ranks `ensemble` averages
    gate_steps: int = 300  #: of edge pruning's training
    learning_rate: float = 0.2  #: of edge pruning's gates
    gate_start: str = "eap"  #: what edge pruning's gates start from
    #: share of FLOPs (block, head) or edges (edge, qkv): of ranking methods, in place of τ, and of edge pruning, where
    #: None becomes 0.5
    remove: float | None = None
    ablation: str = "mean"
    corruption: str = "swap"
    samples: int = 128  #: calibration images
    paths: int = 8  #: groups of neurons an MLP
    max_kl: float = math.inf  #: limit of D_KL(G‖H), nats an image
    seed: int = 0
    task: str = "classes"  #: the model's kind of answers, see `vitfx.graph.kinds.KINDS`
    classes: tuple[str, ...] | None = None  #: the names of those that were chosen, None for all of the model's
    other: bool = False  #: whether the last of these stands for all that were not chosen

    def __post_init__(self) -> None:
        for name, known in (
            ("method", METHODS),
            ("granularity", GRANULARITIES),
            ("order", ORDERS),
            ("metric", METRICS),
            ("gate_start", STARTS),
            ("ablation", ABLATIONS),
            ("corruption", CORRUPTIONS),
            ("task", KINDS),
        ):
            if getattr(self, name) not in known:
                raise UserError(f"`{name}` {getattr(self, name)} is not known: choose one of {', '.join(known)}")
        _check_ensemble(self.ensemble)
        self._check_numbers()
        self._check_size()

    def _check_numbers(self) -> None:
        numbers = [(name, float) for name in ("tau", "max_kl", *(() if self.remove is None else ("remove",)))]
        whole = ("samples", "paths", "steps", "gate_steps", "seed")
        for name, kind in (*numbers, ("learning_rate", float), *((name, int) for name in whole)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int if kind is int else int | float):
                raise UserError(f"{name} is {value!r}: give a {'whole ' if kind is int else ''}number")
        if not (math.isfinite(self.tau) and self.tau >= 0):
            raise UserError(f"`tau` {self.tau} is not a threshold: give a finite number of nats, 0 or more")
        if not self.max_kl >= 0:
            raise UserError(f"`max_kl` {self.max_kl} is not a limit: give a number of nats, 0 or more")
        if not 0 < self.learning_rate < math.inf:
            raise UserError(f"`learning_rate` {self.learning_rate} is not a step: give a finite number above 0")
        for name, least in (("samples", 2), ("paths", 1), ("steps", 1), ("gate_steps", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise UserError(f"`{name}` {getattr(self, name)} is too small: give {least} or more")
        if self.seed >= 2**63:
            raise UserError(f"`seed` {self.seed} is too large: give a number below 2 to the power of 63")

    def _check_size(self) -> None:
        """That the method takes what is to decide how much is removed."""
        if self.method == EDGE_PRUNING and self.remove is None:
            object.__setattr__(self, "remove", 0.5)
        if self.remove is not None and self.method in MEASURING:
            raise UserError(f"`remove` is for methods that rank edges, {self.method} decides by `tau`: leave it out")
        if self.method not in MEASURING and not math.isinf(self.max_kl):
            how = "learns a given share" if self.method == EDGE_PRUNING else "only ranks edges"
            raise UserError(f"`max_kl` is for methods that measure KL, {self.method} {how}: leave it out")
        if self.remove is not None and not 0 <= self.remove < 1:
            raise UserError(f"`remove` {self.remove} is not a share: give a number from 0 to 1")

    @property
    def threshold(self) -> str:
        """What decides which edges are removed, in words."""
        return f"τ = {self.tau:g}" if self.remove is None else f"a share of {self.remove:g} to remove"

    def to_json(self) -> dict[str, Any]:
        """JSON has no infinity: a max_kl without limit is null. The task is left out where it is `classes`, the classes
        where none were chosen, and what belongs to an ensemble or to edge pruning where the method is another."""
        record = asdict(self)
        if self.method != EDGE_PRUNING:
            record = {name: value for name, value in record.items() if name not in OF_EDGE_PRUNING}
        if self.task == "classes":
            del record["task"]
        if not self.other:
            del record["other"]
        if self.method == "ensemble":
            record["ensemble"] = list(self.ensemble)
        else:
            del record["ensemble"]
        if self.classes is None:
            del record["classes"]
        else:
            record["classes"] = list(self.classes)
        record["max_kl"] = None if math.isinf(self.max_kl) else self.max_kl
        return record

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> Settings:
        """Raises UserError for anything that `to_json` did not make, such as the settings of a run for a goal."""
        try:
            if record["method"] == "goal":
                goal = record["goal"].replace("-", "_")
                raise UserError(
                    f"the circuit was found for `{goal}` {record['value']} and holds no discovery to repeat: "
                    "give that goal again in place of the circuit"
                )
            given = {**record, "max_kl": math.inf if record["max_kl"] is None else record["max_kl"]}
            given |= {name: tuple(record[name]) for name in ("classes", "ensemble") if name in record}
            return Settings(**given)
        except (TypeError, KeyError) as error:
            raise UserError(
                f"the circuit's settings can't be read ({error}): give a circuit that vitfx wrote"
            ) from error


def _check_ensemble(methods: tuple[str, ...]) -> None:
    if unknown := [method for method in methods if method not in SINGLE]:
        raise UserError(f"`ensemble` can't have {unknown[0]}: choose from {', '.join(SINGLE)}")
    if len(methods) < 2 or len(set(methods)) < len(methods):
        raise UserError(f"`ensemble` {','.join(methods)} is no mean of several: give two methods or more, each once")

"""The deletion plan: which units of which sublayers go, the constants that they leave behind, and the weights with
which survivors make up for them."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from passes.base import PassError
from passes.stream import read_sites

FORMAT = "vitfx-plan/1"


@dataclass(frozen=True)
class SublayerDeletion:
    """What is deleted of one sublayer."""

    name: str  #: the sublayer's, "a3" or "m3"
    kind: str  #: of its units, "head" or "neuron"
    units: tuple[int, ...]  #: those deleted, ascending
    total: int  #: how many units the sublayer has
    #: float64 (D,) or (T, D): what the deleted units add to the stream when ablated, without the sublayer's own bias;
    #: None for zero
    constant: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.units or list(self.units) != sorted(set(self.units)):
            raise PassError(
                f"the units deleted of {self.name} are {self.units}: give one or more, each once, ascending"
            )
        if not 0 <= self.units[0] <= self.units[-1] < self.total:
            raise PassError(f"{self.name} has the {self.kind}s 0 to {self.total - 1}, not {self.units[-1]}")

    @property
    def kept(self) -> tuple[int, ...]:
        gone = set(self.units)
        return tuple(unit for unit in range(self.total) if unit not in gone)

    @property
    def whole(self) -> bool:
        """Nothing of the sublayer is left."""
        return len(self.units) == self.total


@dataclass(frozen=True)
class Refit:
    """What a surviving sublayer writes with in place of its own projection, to make up for deletions."""

    name: str  #: the sublayer's
    weight: Tensor  #: (D, E), the projection of the inner channels that it keeps, in their order
    shift: Tensor  #: (D,), added to its bias, besides any constant that goes there

    def __post_init__(self) -> None:
        if self.weight.dim() != 2 or self.shift.shape != self.weight.shape[:1]:
            raise PassError(
                f"the refit of {self.name} has a weight of {tuple(self.weight.shape)} and a shift of "
                f"{tuple(self.shift.shape)}: give (width, channels) and (width,)"
            )

    def tensors(self) -> dict[str, Tensor]:
        """The numbers by name, for a file beside the plan."""
        return {f"{self.name}.weight": self.weight.contiguous(), f"{self.name}.shift": self.shift.contiguous()}


@dataclass(frozen=True)
class DeletionPlan:
    """Deletions and refits, at most one of each a sublayer, in the order of the stream."""

    deletions: tuple[SublayerDeletion, ...] = ()
    refits: tuple[Refit, ...] = ()

    def __post_init__(self) -> None:
        for changes in (self.deletions, self.refits):
            names = [change.name for change in changes]
            if len(set(names)) != len(names):
                raise PassError(f"a plan names each sublayer once, this one names {names}")

    @staticmethod
    def deleting(graph_module: GraphModule, units: Mapping[str, Collection[int]]) -> DeletionPlan:
        """Without constants. units: those to delete, by sublayer; a sublayer with none, or not named, stays whole."""
        return DeletionPlan(
            tuple(
                SublayerDeletion(site.name, site.module.kind, tuple(sorted(units[site.name])), site.module.units)
                for site in read_sites(graph_module)
                if units.get(site.name)
            )
        )

    def without_constants(self) -> DeletionPlan:
        """The deletions alone: nothing stands in for what is deleted, and nothing makes up for it."""
        return DeletionPlan(tuple(replace(deletion, constant=None) for deletion in self.deletions))

    def of_kind(self, kind: str) -> dict[str, SublayerDeletion]:
        return {deletion.name: deletion for deletion in self.deletions if deletion.kind == kind}

    def check(self, graph_module: GraphModule) -> None:
        """Raises PassError where the plan is not for this graph."""
        sites = {site.name: site.module for site in read_sites(graph_module)}
        for deletion in self.deletions:
            module = sites.get(deletion.name)
            if module is None:
                raise PassError(f"the plan names the sublayer {deletion.name}, which the graph does not have")
            if (module.kind, module.units) != (deletion.kind, deletion.total):
                raise PassError(
                    f"the plan has {deletion.total} {deletion.kind}s in {deletion.name}, "
                    f"the graph has {module.units} {module.kind}s"
                )
        gone = {deletion.name: len(deletion.units) for deletion in self.deletions}
        for refit in self.refits:
            module = sites.get(refit.name)
            if module is None:
                raise PassError(f"the plan refits the sublayer {refit.name}, which the graph does not have")
            kept = (module.out.weight.shape[0], (module.units - gone.get(refit.name, 0)) * module.channels)
            if refit.weight.shape != kept:
                raise PassError(
                    f"the plan refits {refit.name} with a weight of {tuple(refit.weight.shape)}, "
                    f"but what it keeps there needs {kept}"
                )

    def __str__(self) -> str:
        if not self.deletions:
            return "nothing is deleted"
        refitted = [refit.name for refit in self.refits]
        lines = [
            f"{cut.name}: {'all' if cut.whole else len(cut.units)} of {cut.total} {cut.kind}s"
            + ("" if cut.kind == "neuron" or cut.whole else f" ({', '.join(map(str, cut.units))})")
            for cut in self.deletions
        ]
        return "\n".join(lines + ([f"refitted: {', '.join(refitted)}"] if refitted else []))

    def tensors(self) -> dict[str, Tensor]:
        """The refits' numbers by name, for a file beside the JSON, which would grow too large."""
        return {name: value for refit in self.refits for name, value in refit.tensors().items()}

    def to_json(self) -> str:
        """Constants as base64 of little-endian float64, so that a plan read back is the plan written; of each refit's
        tensors, which `tensors` gives, the shape, type and sha256."""
        record: dict[str, Any] = {
            "format": FORMAT,
            "deletions": [_record(deletion) for deletion in self.deletions],
            "refits": [
                {"name": refit.name, "tensors": {name: _facts(value) for name, value in refit.tensors().items()}}
                for refit in self.refits
            ],
        }
        return json.dumps(record, indent=1)

    @staticmethod
    def from_json(text: str, tensors: Mapping[str, Tensor] | None = None) -> DeletionPlan:
        """tensors: what `DeletionPlan.tensors` gave for this plan. Raises PassError where they are not the plan's."""
        record = json.loads(text)
        if record.get("format") != FORMAT:
            raise PassError(f"format {record.get('format')!r} is not {FORMAT}")
        refits = tuple(_refit(refit, tensors or {}) for refit in record.get("refits", ()))
        return DeletionPlan(tuple(_deletion(deletion) for deletion in record["deletions"]), refits)


def _record(deletion: SublayerDeletion) -> dict[str, Any]:
    constant = deletion.constant
    return {
        "name": deletion.name,
        "kind": deletion.kind,
        "units": list(deletion.units),
        "total": deletion.total,
        "constant": None
        if constant is None
        else {
            "shape": list(constant.shape),
            "float64": base64.b64encode(constant.double().contiguous().numpy().astype("<f8").tobytes()).decode(),
        },
    }


def _deletion(record: dict[str, Any]) -> SublayerDeletion:
    constant = record["constant"]
    tensor = None
    if constant is not None:
        raw = bytearray(base64.b64decode(constant["float64"]))
        shape = constant["shape"]
        if not raw or len(raw) != 8 * math.prod(shape) or min(shape) < 1 or not 1 <= len(shape) <= 2:
            raise PassError(f"the constant of {record['name']} has {len(raw)} bytes for the shape {shape}")
        tensor = torch.frombuffer(raw, dtype=torch.float64).reshape(shape).clone()
    return SublayerDeletion(record["name"], record["kind"], tuple(record["units"]), record["total"], tensor)


def _facts(value: Tensor) -> dict[str, Any]:
    if value.dtype not in (torch.float32, torch.float64):
        raise PassError(f"a plan's tensors are float32 or float64, not {value.dtype}")
    raw = value.detach().cpu().contiguous().numpy()
    little = raw.astype(raw.dtype.newbyteorder("<"), copy=False)
    return {"shape": list(value.shape), "type": raw.dtype.name, "sha256": hashlib.sha256(little.tobytes()).hexdigest()}


def _refit(record: dict[str, Any], tensors: Mapping[str, Tensor]) -> Refit:
    if list(record["tensors"]) != (names := [f"{record['name']}.weight", f"{record['name']}.shift"]):
        raise PassError(f"the refit of {record['name']} has the tensors {list(record['tensors'])}, not {names}")
    for name, facts in record["tensors"].items():
        if name not in tensors:
            raise PassError(f"the plan's tensor {name} is missing: give the file that was written beside the plan")
        if _facts(tensors[name]) != facts:
            raise PassError(f"the tensor {name} is not the plan's: give the file that was written beside the plan")
    return Refit(record["name"], *(tensors[name] for name in record["tensors"]))


def channels_of(units: Sequence[int], channels: int) -> Tensor:
    """The inner channels of these units, `channels` each, in the units' order: int64 (len(units) · channels,)."""
    return (torch.tensor(list(units), dtype=torch.long)[:, None] * channels + torch.arange(channels)).flatten()

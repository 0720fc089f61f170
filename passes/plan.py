"""The deletion plan: which units of which sublayers go, and the constant that each sublayer's dead leave behind."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from passes.base import PassError
from passes.stream import read_sites


@dataclass(frozen=True)
class SublayerDeletion:
    """What is deleted of one sublayer.

    name: the sublayer's ("a3", "m3"). kind: "head" or "neuron". units: those deleted, ascending. total: all it has.
    constant: float64 (D,) or (T, D), the ablated value of the deleted units' sum in the stream, without the sublayer's
    own bias; None stands for zero.
    """

    name: str
    kind: str
    units: tuple[int, ...]
    total: int
    constant: Tensor | None = None

    def __post_init__(self) -> None:
        if not self.units or list(self.units) != sorted(set(self.units)):
            raise PassError(
                f"the units deleted of {self.name} are {self.units}: give each once, ascending, at least one"
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
class DeletionPlan:
    """Deletions, one a sublayer, in the order of the stream."""

    deletions: tuple[SublayerDeletion, ...] = ()

    def __post_init__(self) -> None:
        names = [deletion.name for deletion in self.deletions]
        if len(set(names)) != len(names):
            raise PassError(f"a plan names a sublayer once, this one names {names}")

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
                    f"the plan takes {deletion.name} for {deletion.total} {deletion.kind}s, "
                    f"the graph has {module.units} {module.kind}s there"
                )

    def __str__(self) -> str:
        if not self.deletions:
            return "nothing is deleted"
        return "\n".join(
            f"{one.name}: {'all' if one.whole else len(one.units)} of {one.total} {one.kind}s"
            + ("" if one.kind == "neuron" or one.whole else f" ({', '.join(map(str, one.units))})")
            for one in self.deletions
        )

    def to_json(self) -> str:
        """Constants as base64 of little-endian float64, so that a plan read back is the plan written."""
        return json.dumps({"format": "vitfx-plan/1", "deletions": [_record(one) for one in self.deletions]}, indent=1)

    @staticmethod
    def from_json(text: str) -> DeletionPlan:
        record = json.loads(text)
        if record.get("format") != "vitfx-plan/1":
            raise PassError(f"format {record.get('format')!r} is not vitfx-plan/1")
        return DeletionPlan(tuple(_deletion(one) for one in record["deletions"]))


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
        tensor = torch.frombuffer(raw, dtype=torch.float64).reshape(constant["shape"]).clone()
    return SublayerDeletion(record["name"], record["kind"], tuple(record["units"]), record["total"], tensor)


def channels_of(units: Sequence[int], channels: int) -> Tensor:
    """The inner channels of these units, `channels` each, in the units' order: int64 (len(units) · channels,)."""
    return (torch.tensor(list(units), dtype=torch.long)[:, None] * channels + torch.arange(channels)).flatten()

"""A deletion plan in a folder: JSON for people, beside it the refitted weights, whose sha256 the JSON holds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NotRequired, TypedDict

from safetensors import SafetensorError
from safetensors.torch import load, save

from passes.base import PassError
from passes.plan import FORMAT, DeletionPlan
from vitfx.support.errors import UserError, in_a_line
from vitfx.support.files import write_aside
from vitfx.support.json_files import read_json, write_json
from vitfx.support.reading import read_bytes
from vitfx.support.typed import typed

PLAN, TENSORS = PLAN_FILES = ("plan.json", "plan.safetensors")
_ADVICE = "give the folder of a run"


class _Constant(TypedDict):
    shape: list[int]
    float64: str


class _Deletion(TypedDict):
    name: str
    kind: str
    units: list[int]
    total: int
    constant: _Constant | None


class _Facts(TypedDict):
    shape: list[int]
    type: str
    sha256: str


class _Refit(TypedDict):
    name: str
    tensors: dict[str, _Facts]


class _Plan(TypedDict):
    """As `passes.plan` writes it."""

    deletions: list[_Deletion]
    refits: NotRequired[list[_Refit]]


def write_plan(folder: Path, plan: DeletionPlan) -> None:
    """Raises WriteError."""
    write_aside(folder / TENSORS, save(plan.tensors()))
    write_json(folder / PLAN, FORMAT, json.loads(plan.to_json()))


def read_plan(folder: Path) -> DeletionPlan:
    """Raises UserError where the two files are missing, damaged or not of one run."""
    record, tensors = read_json(folder / PLAN, FORMAT, _ADVICE), read_bytes(folder / TENSORS, _ADVICE)
    try:
        plan = {"format": FORMAT, **typed(record, _Plan, "the plan")}
        return DeletionPlan.from_json(json.dumps(plan), load(tensors))
    except (SafetensorError, ValueError, PassError) as error:
        raise UserError(f"the plan in {folder} can't be used ({in_a_line(error)}): {_ADVICE}") from error

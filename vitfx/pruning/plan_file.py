"""A deletion plan in a folder: JSON for people, beside it the refitted weights, whose sha256 the JSON holds."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save

from passes.base import PassError
from passes.plan import FORMAT, DeletionPlan
from vitfx.support.errors import UserError
from vitfx.support.files import write_aside
from vitfx.support.json_files import read_json, write_json

PLAN, TENSORS = PLAN_FILES = ("plan.json", "plan.safetensors")


def write_plan(folder: Path, plan: DeletionPlan) -> None:
    """Raises WriteError."""
    write_aside(folder / TENSORS, save(plan.tensors()))
    write_json(folder / PLAN, FORMAT, json.loads(plan.to_json()))


def read_plan(folder: Path) -> DeletionPlan:
    """Raises UserError where the two files are missing, damaged or not of one run."""
    try:
        record = read_json(folder / PLAN, FORMAT, "give the folder of a run")
        return DeletionPlan.from_json(json.dumps({"format": FORMAT, **record}), load((folder / TENSORS).read_bytes()))
    except OSError as error:
        raise UserError(f"{error.filename} can't be read ({error.strerror}): give the folder of a run") from error
    except (SafetensorError, ValueError, KeyError, PassError) as error:
        raise UserError(f"the plan in {folder} can't be used ({error}): give the folder of a run") from error

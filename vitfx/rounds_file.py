"""rounds.json: which steps of pruning in rounds are done, and for what. It is written before the first step and after
every one, so that a run that was stopped goes on behind the last one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

from vitfx.runs.rounds_steps import Step
from vitfx.same_settings import check_same
from vitfx.support.errors import UserError
from vitfx.support.files import write_aside

ROUNDS = "rounds.json"
ARTIFACTS = ("pruned.pt", "pruned.onnx")


def read_steps(folder: Path, settings: Mapping[str, Any], *, force: bool) -> tuple[list[Step], dict[str, Any]]:
    """Steps of an earlier run with the same settings, up to the first one whose files are gone, and the environment
    that they were recorded with; nothing with force.

    settings: all that a step depends on, fingerprints included, JSON-ready. Raises UserError where the file has rounds
    of other settings, or is no such file.
    """
    path = folder / ROUNDS
    if force or not path.exists():
        return [], {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        earlier: dict[str, Any] = record["settings"]
        environment: dict[str, Any] = record["environment"]
        steps = [Step.from_json(one) for one in record["steps"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} is no record of rounds ({error!r}): name another folder with --out, or pass --force"
        ) from error
    check_same(path, "run", earlier, settings)
    whole = takewhile(lambda one: all((folder / one.folder / name).is_file() for name in ARTIFACTS), steps)
    return list(whole), environment


def write_steps(
    folder: Path, steps: Sequence[Step], settings: Mapping[str, Any], environment: Mapping[str, Any]
) -> None:
    """environment: of the machine that measured last, empty before the first step. Raises WriteError."""
    record = {
        "settings": dict(settings),
        "environment": dict(environment),
        "steps": [one.to_json() for one in steps],
    }
    write_aside(folder / ROUNDS, json.dumps(record, indent=1, ensure_ascii=False))

"""Results that a benchmark goes on from: the JSON file that is written after each part, and read again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from vitfx.support.errors import UserError
from vitfx.support.files import write_aside


def read_known(out: Path, asked: dict[str, Any], *parts: str) -> dict[str, dict[str, Any]]:
    """The record's `parts`, by name: what an earlier run has finished; each is empty where there is none.

    asked: all that the numbers depend on. Raises UserError where the file is of something else, or was asked otherwise.
    """
    if not out.exists():
        return {part: {} for part in parts}
    try:
        record = json.loads(out.read_text(encoding="utf-8"))
        same = record["asked"] == asked
        known = {part: dict(record[part]) for part in parts} if same else {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{out} is there and is no result of this benchmark: give another name with --out") from error
    if not same:
        raise UserError(f"{out} was found with other settings, model, data or machine: give another name with --out")
    return known


def write_record(out: Path, record: dict[str, Any]) -> None:
    """Whole, or not at all. Raises UserError where the disk does not take it."""
    write_aside(out, json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n")

"""sweep.json: what a sweep has reached so far, and for what. It is written before the first point and after every
one, so that a sweep that was stopped goes on behind its last one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitfx.runs.sweep_points import KNEE_RULE, Point, by_speed, knee
from vitfx.same_settings import check_same
from vitfx.support.errors import UserError
from vitfx.support.files import write_aside

SWEEP = "sweep.json"


def read_points(folder: Path, settings: Mapping[str, Any], *, force: bool) -> tuple[tuple[Point, ...], dict[str, Any]]:
    """Points of an earlier run with the same settings, by rising speed-up, and the environment that they were recorded
    with; nothing with force, or where there is no file.

    settings: all that a point depends on, fingerprints included, JSON-ready. Raises UserError where the file has a
    sweep of other settings, or is not one.
    """
    path = folder / SWEEP
    if force or not path.exists():
        return (), {}
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        earlier: dict[str, Any] = record["settings"]
        environment: dict[str, Any] = record["environment"]
        points = [Point.from_json(one) for one in record["points"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no sweep ({error!r}): name another folder with --out, or pass --force") from error
    check_same(path, "sweep", earlier, settings)
    return by_speed(points), environment


def write_points(
    folder: Path, points: Sequence[Point], settings: Mapping[str, Any], environment: Mapping[str, Any]
) -> None:
    """environment: of the machine that measured last, empty before the first point. Raises WriteError."""
    bend = knee(points)
    record = {
        "settings": dict(settings),
        "environment": dict(environment),
        "knee": {"asked": None if bend is None else bend.asked, "found": bend is not None, "rule": KNEE_RULE},
        "points": [one.to_json() for one in points],
    }
    write_aside(folder / SWEEP, json.dumps(record, indent=1, ensure_ascii=False))

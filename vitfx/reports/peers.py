"""Results of benchmarks.peers for a comparison: ways of pruning one model, each as a curve of its models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vitfx.pruning.goal import Target
from vitfx.reports.points import Reached, plain_export
from vitfx.reports.read_runs import RESULTS, Run, number
from vitfx.support.errors import UserError

PEER = "peer"
_ORIGINAL = "original"
BY_TIME = "vitfx-time"
"""The peer whose shares are of the time, not of the FLOPs."""


def read_peers(record: Mapping[str, Any], path: Path, name: str) -> tuple[Run, ...]:
    """The original, then a run for each peer that has a model, in the order of the file; a peer's models by the share
    of the FLOPs, or of the time, that was to go. record: what the file has. name: of the file, on the page. Raises
    UserError for anything but a file of benchmarks.peers."""
    try:
        return _runs(name, record["asked"], record["rows"])
    except (KeyError, TypeError, ValueError, ZeroDivisionError, AttributeError) as error:
        raise UserError(f"{path} is no result of benchmarks.peers ({error!r}): {RESULTS}") from error


def _runs(name: str, asked: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]) -> tuple[Run, ...]:
    where, whole = str(Target(**asked["target"])), rows[_ORIGINAL]
    params = number(whole, "parameters")
    plain = plain_export(_share(whole, "plain"), where)
    points = (plain, _reached(whole, "exact rewrites", params, where))
    made = {
        "settings": {key: value for key, value in asked.items() if key != "environment"},
        "environment": dict(asked["environment"]),
    }
    notes = tuple(f"{title} has no model: {row['refused']}" for title, row in rows.items() if "refused" in row)
    found = [Run(f"{name}: {_ORIGINAL}", points, PEER, made=made, notes=notes)]
    measured = [row for title, row in rows.items() if title != _ORIGINAL and "refused" not in row]
    for peer in dict.fromkeys(str(row["peer"]) for row in measured):
        own = sorted((row for row in measured if row["peer"] == peer), key=lambda row: number(row, "share"))
        what = "time to save" if peer == BY_TIME else "FLOPs to delete"
        models = [_reached(row, f"{number(row, 'share'):.0%} of the {what}", params, where) for row in own]
        found.append(Run(f"{name}: {peer}", tuple(models), PEER))
    return tuple(found)


def _reached(row: Mapping[str, Any], title: str, params: float, where: str) -> Reached:
    """params: of the original."""
    return Reached(
        title,
        _share(row, "accuracy"),
        number(row, "agreement"),
        number(row, "kl"),
        1 / number(row, "speedup"),
        where,
        number(row, "parameters") / params,
        1 - number(row, "deleted"),
        joined=True,
    )


def _share(row: Mapping[str, Any], key: str) -> float | None:
    """None without labels."""
    return None if row[key] is None else number(row, key)

"""Results of benchmarks.peers for a comparison: ways of pruning one model, each as a curve of its models."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vitfx.pruning.goal import Target
from vitfx.reports.points import ModelPoint, plain_export
from vitfx.reports.read_runs import DAMAGES, Run, number
from vitfx.reports.records import Facts, PeersRecord
from vitfx.support.errors import UserError

_ORIGINAL = "original"
BY_TIME = "vitfx-time"
"""The peer whose shares are of the time, not of the FLOPs."""


def read_peers(record: PeersRecord, path: Path, name: str) -> tuple[Run, ...]:
    """The original, then a run for each peer that has a model, in the order of the file.

    A peer's models stand by the share of the FLOPs, or of the time, that was to go. name: of the file, on the page.
    Raises UserError for a damaged file.
    """
    try:
        return _runs(name, record["asked"], record["rows"])
    except DAMAGES as error:
        raise UserError(
            f"{path} is a damaged result of benchmarks.peers ({error!r}): give one that it finished"
        ) from error


def _runs(name: str, asked: Facts, rows: Mapping[str, Facts]) -> tuple[Run, ...]:
    where, whole = str(Target(**asked["target"])), rows[_ORIGINAL]
    params = number(whole, "parameters")
    points = (plain_export(_share(whole, "plain"), where), _point(whole, "exact rewrites", params, where))
    settings = {key: value for key, value in asked.items() if key != "environment"}
    notes = tuple(f"{title} has no model: {row['refused']}" for title, row in rows.items() if "refused" in row)
    runs = [
        Run(
            f"{name}: {_ORIGINAL}",
            points,
            made={"settings": settings, "environment": asked["environment"]},
            notes=notes,
            is_peer=True,
        )
    ]
    measured = [row for title, row in rows.items() if title != _ORIGINAL and "refused" not in row]
    for peer in dict.fromkeys(str(row["peer"]) for row in measured):
        own = sorted((row for row in measured if row["peer"] == peer), key=lambda row: number(row, "share"))
        goal = "time to save" if peer == BY_TIME else "FLOPs to delete"
        models = [_point(row, f"{number(row, 'share'):.0%} of the {goal}", params, where) for row in own]
        runs.append(Run(f"{name}: {peer}", tuple(models), is_peer=True))
    return tuple(runs)


def _point(row: Facts, title: str, params: float, where: str) -> ModelPoint:
    """params: of the original."""
    return ModelPoint(
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


def _share(row: Facts, key: str) -> float | None:
    """None without labels."""
    return None if row[key] is None else number(row, key)

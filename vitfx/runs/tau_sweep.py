"""The same discovery at many thresholds: a circuit for each, and a table of what they cost."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, cast

from vitfx.circuits.circuit import Circuit
from vitfx.circuits.details import Fidelity, Overlap
from vitfx.discovery.basis.settings import Settings
from vitfx.discovery.stability import Outcome
from vitfx.runs.discover import Discoveries, matches
from vitfx.runs.step_file import StepFile, read_range
from vitfx.support.errors import UserError
from vitfx.support.machine import environment
from vitfx.support.processes import on_first
from vitfx.support.tables import Table
from vitfx.support.text import percent

_ADVICE = "give another name with `out`, or `force` to replace it"


class Row(TypedDict):
    """One threshold in the table."""

    tau: float
    file: str
    fingerprint: str
    edges: int
    removed: int
    heads: int
    dead_heads: int
    paths: int
    dead_paths: int
    kl: float
    fidelity: Fidelity
    eval_samples: int
    evaluation: Fidelity | None
    overlap: Overlap | None
    seconds: float | None  #: None where an earlier run was stopped and nobody knows how long it had taken


def _read_row(record: dict[str, Any]) -> Row:
    """Raises KeyError and TypeError for anything but a row."""
    return cast(Row, {name: record[name] for name in Row.__annotations__})


FORMAT = "vitfx-tau-sweep/1"
_FILE = StepFile(FORMAT, "sweep", "sweep", _read_row, _ADVICE)


def read_sweep(text: str) -> tuple[float, ...]:
    """ "1e-5:1e-1:9" -> 9 thresholds from 1e-5 to 1e-1, in equal ratios, to four digits. Raises UserError."""
    low, high, count = read_range("tau_sweep", text, "1e-5:1e-1:9", above=0)
    return tuple(float(f"{low * (high / low) ** (index / (count - 1)):.4g}") for index in range(count))


def circuit_path(out: Path, tau: float) -> Path:
    return out.with_name(f"{out.stem}-tau{tau:g}{out.suffix}")


def record_path(out: Path) -> Path:
    return out.with_name(f"{out.stem}-sweep.json")


def sweep(job: Discoveries, settings: Settings, taus: Sequence[float], out: Path) -> list[Row]:
    """Writes a circuit for each τ beside `out`, and the table of them. Circuits that an earlier run with the same
    settings wrote, of these τ or others, are not discovered again and stay in the table.

    Returns the rows of `taus`. Raises UserError where another file or another sweep's table would be overwritten.
    """
    shared = {**settings.to_json(), "eval_samples": job.evaluated, "repeats": job.repeats, **job.facts}
    del shared["tau"]
    rows = on_first(job.share, lambda: _known(job, settings, taus, out, shared))
    for tau in taus:
        if tau in rows:
            job.watcher.say(f"τ = {tau:g}: {rows[tau]['file']} is there already")
            continue
        rows[tau] = _discover(job, replace(settings, tau=tau), circuit_path(out, tau))
        if job.share.rank == 0:
            _FILE.write(record_path(out), [rows[done] for done in sorted(rows)], shared, environment())
    return [rows[tau] for tau in taus]


def _known(
    job: Discoveries, settings: Settings, taus: Sequence[float], out: Path, shared: Mapping[str, object]
) -> dict[float, Row]:
    """The rows whose circuits are there; with force, a table of something else is left out. Raises UserError."""
    facts, table = job.facts, record_path(out)
    try:
        recorded, _ = _FILE.read(table, shared)
    except UserError:
        if not job.force:
            raise
        recorded = []
    rows = {row["tau"]: row for row in recorded}
    known = {}
    for tau in dict.fromkeys([*taus, *rows]):
        path, row = circuit_path(out, tau), rows.get(tau)
        circuit = _circuit_at(path)
        own = circuit is not None and matches(circuit, replace(settings, tau=tau), facts, job.repeats)
        if circuit is not None and own and row is not None and row["fingerprint"] == circuit.fingerprint():
            known[tau] = row
        elif path.exists() and not own and not job.force:
            raise UserError(f"{path} is there already, of other settings, model or images: {_ADVICE}")
    return known


def _discover(job: Discoveries, settings: Settings, path: Path) -> Row:
    again = ""
    if path.exists() and not job.force:
        again = f": {path.name} has no row in the table, and is discovered again"
    job.watcher.say(f"τ = {settings.tau:g}{again}")
    begun, start = job.begun(path), time.perf_counter()
    outcome = job.run(settings, path)
    return _row(outcome, path, job.evaluated, None if begun else time.perf_counter() - start)


def _circuit_at(path: Path) -> Circuit | None:
    try:
        return Circuit.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, UserError):
        return None


def _row(outcome: Outcome, path: Path, evaluated: int, seconds: float | None) -> Row:
    circuit = outcome.circuit
    (heads, all_heads), (paths, all_paths) = outcome.dead_of("a"), outcome.dead_of("m")
    return {
        "tau": circuit.settings["tau"],
        "file": path.name,
        "fingerprint": circuit.fingerprint(),
        "edges": len(circuit.decisions),
        "removed": len(circuit.removed),
        "heads": all_heads,
        "dead_heads": heads,
        "paths": all_paths,
        "dead_paths": paths,
        "kl": circuit.kl,
        "fidelity": circuit.details["fidelity"],
        "eval_samples": evaluated,
        "evaluation": circuit.details.get("evaluation"),
        "overlap": circuit.details["stability"]["overlap"] if "stability" in circuit.details else None,
        "seconds": None if seconds is None else round(seconds, 3),
    }


def to_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """Agreement and accuracy on the held-out images where circuits were run on them, else on the calibration images."""
    first = rows[0]["evaluation"] or rows[0]["fidelity"]
    where = f"{first['images']} {'held-out' if rows[0]['evaluation'] else 'calibration'} images"
    totals = f"{rows[0]['edges']:,} edges, {rows[0]['heads']} heads, {rows[0]['paths']} paths"
    cells = []
    for row in rows:
        scores = row["evaluation"] or row["fidelity"]
        cells.append(
            (
                f"{row['tau']:g}",
                f"{row['removed']:,}",
                str(row["dead_heads"]),
                str(row["dead_paths"]),
                f"{row['kl']:.4g}",
                percent(scores["agreement"]),
                "" if scores["accuracy"] is None else f"{scores['accuracy']:.2%}",
                "" if row["seconds"] is None else f"{row['seconds']:.1f}",
            )
        )
    columns = ("τ", "edges removed", "dead heads", "dead paths", "KL", "agreement", "accuracy", "seconds")
    caption = f"of {totals}; KL on the calibration images, agreement and accuracy on {where}"
    return Table(columns, cells, caption=caption, left=())

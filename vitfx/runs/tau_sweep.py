"""The same discovery at many thresholds: a circuit for each, and a table of what they cost."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from vitfx.circuits.circuit import Circuit
from vitfx.discovery.basis.settings import Settings
from vitfx.discovery.stability import Outcome
from vitfx.runs.discover import Discoveries, matches
from vitfx.support.errors import UserError
from vitfx.support.files import write_aside
from vitfx.support.processes import on_first
from vitfx.support.tables import Table


def read_sweep(text: str) -> tuple[float, ...]:
    """ "1e-5:1e-1:9" -> 9 thresholds from 1e-5 to 1e-1, each as many times the one before, to four digits.

    Raises UserError.
    """
    try:
        low, high, count = (kind(part) for kind, part in zip((float, float, int), text.split(":"), strict=True))
    except ValueError as error:
        raise UserError(f"--tau-sweep {text} is not LOW:HIGH:COUNT: give for example 1e-5:1e-1:9") from error
    if not (0 < low < high < math.inf) or count < 2:
        raise UserError(f"--tau-sweep {text} is no range: give 0 < LOW < HIGH, and a COUNT of 2 or more")
    return tuple(float(f"{low * (high / low) ** (index / (count - 1)):.4g}") for index in range(int(count)))


def circuit_path(out: Path, tau: float) -> Path:
    return out.with_name(f"{out.stem}-tau{tau:g}{out.suffix}")


def record_path(out: Path) -> Path:
    return out.with_name(f"{out.stem}-sweep.json")


def sweep(job: Discoveries, settings: Settings, taus: Sequence[float], out: Path) -> list[dict[str, Any]]:
    """A circuit file for each τ beside `out`, and the table of them as JSON; circuits that an earlier run with the same
    settings wrote, of these τ or others, are not discovered again and stay in the table's file. Raises UserError where
    another file would be overwritten, or another sweep's table."""
    facts = job.facts

    def known() -> dict[float, dict[str, Any]]:
        rows = _known_rows(record_path(out), force=job.force)
        found = {}
        for tau in dict.fromkeys([*taus, *rows]):
            path, row = circuit_path(out, tau), rows.get(tau)
            circuit = _circuit_at(path)
            own = circuit is not None and matches(circuit, replace(settings, tau=tau), facts, job.repeats)
            own = own and (row is None or row.get("eval_samples") == job.evaluated)
            if circuit is not None and own and row is not None and row["fingerprint"] == circuit.fingerprint():
                found[tau] = row
            elif path.exists() and not own and not job.force:
                raise UserError(
                    f"{path} is there already, of other settings, model, images or --eval-samples: give another name "
                    "with --out, or --force to replace it"
                )
        return found

    rows = on_first(job.share, known)
    for tau in taus:
        if tau in rows:
            job.watcher.say(f"τ = {tau:g}: {rows[tau]['file']} is there already")
            continue
        path = circuit_path(out, tau)
        again = path.exists() and not job.force
        job.watcher.say(
            f"τ = {tau:g}" + (f": {path.name} has no row in the table, and is found again" if again else "")
        )
        # Of a run that was broken off nobody knows how long it took until then.
        begun, start = job.begun(path), time.perf_counter()
        outcome = job.run(replace(settings, tau=tau), path)
        rows[tau] = _row(outcome, path, job.evaluated, None if begun else time.perf_counter() - start)
        if job.share.rank == 0:
            done = [rows[one] for one in sorted(rows)]
            write_aside(record_path(out), json.dumps({"sweep": done}, indent=1, ensure_ascii=False))
    return [rows[tau] for tau in taus]


def _known_rows(path: Path, *, force: bool) -> dict[float, dict[str, Any]]:
    """What an earlier run recorded; nothing, with `force`, of a file that is something else. Raises UserError."""
    try:
        return {row["tau"]: row for row in json.loads(path.read_text(encoding="utf-8"))["sweep"]}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError) as error:
        if force:
            return {}
        raise UserError(
            f"{path} is there and is no table of a sweep: give another name with --out, or --force to replace it"
        ) from error


def _circuit_at(path: Path) -> Circuit | None:
    try:
        return Circuit.from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, UserError):
        return None


def _row(outcome: Outcome, path: Path, evaluated: int, seconds: float | None) -> dict[str, Any]:
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
                f"{scores['agreement']:.2%}",
                "" if scores["accuracy"] is None else f"{scores['accuracy']:.2%}",
                "" if row["seconds"] is None else f"{row['seconds']:.1f}",
            )
        )
    columns = ("τ", "edges removed", "dead heads", "dead paths", "KL", "agreement", "accuracy", "seconds")
    caption = f"of {totals}; KL on the calibration images, agreement and accuracy on {where}"
    return Table(columns, cells, caption=caption, left=())

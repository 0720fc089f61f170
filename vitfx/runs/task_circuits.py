"""One circuit for each task, which is some of the classes, and how much of it the others have."""

from __future__ import annotations

import re
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from vitfx.discovery.basis.settings import Settings
from vitfx.discovery.stability import Outcome
from vitfx.discovery.task_overlap import KINDS, Alive, overlaps, served
from vitfx.reports.records import TASKS_RECORD, TaskCircuit, TasksRecord
from vitfx.reports.task_pages import tasks_page, tasks_picture
from vitfx.runs.discover import Discoveries
from vitfx.runs.step_file import StepFile
from vitfx.support.errors import UserError, in_a_line
from vitfx.support.files import write_aside
from vitfx.support.machine import environment
from vitfx.support.processes import on_first
from vitfx.support.progress import Watcher
from vitfx.support.reading import read_text

ALL = "all"
"""In place of a task's classes."""
Tasks = dict[str, str | list[str | int] | None]
"""The classes of each task, None for all of the model's."""
Open = Callable[[str | list[str | int] | None], tuple[Discoveries, Settings]]
"""Opens the model and the images for some classes. Raises UserError."""
_ADVICE = "give another name with `out`, or `force` to replace it"


def _read_row(record: dict[str, Any]) -> TaskCircuit:
    """Raises KeyError, TypeError and ValueError for anything but a row."""
    for alive in record["alive"]:
        Alive.from_json(alive)
    return cast(TaskCircuit, {name: record[name] for name in TaskCircuit.__annotations__})


_FILE = StepFile(TASKS_RECORD, "file of tasks", "tasks", _read_row, _ADVICE)


def read_tasks(path: Path) -> Tasks:
    """A file in TOML with a line for each task, maybe under [tasks]: name = "all", or a list of classes, or what
    `classes` takes. Raises UserError."""
    advice = 'give lines such as cats = ["tabby", "lynx"]'
    text = read_text(path, f"as `tasks` {advice}", encoding="utf-8-sig")
    try:
        record: dict[str, Any] = tomllib.loads(text)
    # ValueError: what Python says of an integer of too many digits, and tomllib of all else.
    except (ValueError, RecursionError) as error:
        raise UserError(f"`tasks` {path} is not TOML ({in_a_line(error)}): {advice}") from error
    tasks = record["tasks"] if set(record) == {"tasks"} and isinstance(record["tasks"], dict) else record
    for name, classes in tasks.items():
        if not re.fullmatch(r"[\w. -]+", name):
            raise UserError(
                f"`tasks` {path} names a task {in_a_line(name)!r}, which no file can be named after: use letters"
            )
        items = classes if isinstance(classes, list) else [classes]
        if not items or not all(isinstance(item, str) or type(item) is int for item in items):
            raise UserError(
                f"`tasks` {path}: {name} = {in_a_line(repr(classes))} is no list of classes: give names or numbers"
            )
    if len(tasks) < 2:
        raise UserError(f"`tasks` {path} has {len(tasks) or 'no'} tasks, which leaves nothing to compare: give two")
    return {name: None if classes == ALL else classes for name, classes in tasks.items()}


def discover_tasks(tasks: Tasks, open_task: Open, out: Path, watcher: Watcher) -> TasksRecord:
    """Writes a circuit for each task beside `out`, the record of them there, and a picture and a page of the same name.

    Tasks that an earlier run with the same settings finished are not discovered again. Raises UserError.
    """
    rows: dict[str, TaskCircuit] = {}
    shared: dict[str, object] = {}
    for number, (name, classes) in enumerate(tasks.items(), start=1):
        watcher.say(f"task {name}, {number} of {len(tasks)}")
        job, settings = open_task(classes)
        if not shared:
            own = {key: value for key, value in settings.to_json().items() if key not in ("classes", "other")}
            shared = {**own, "eval_samples": job.evaluated, "repeats": job.repeats, "data": job.inputs.data}
            known, _ = on_first(job.share, lambda: _FILE.read(out, shared, force=job.force))  # noqa: B023
            rows = {row["name"]: row for row in known}
        path = out.with_name(f"{out.stem}-{name}.json")
        if (row := rows.get(name)) is not None and row["origins"] == job.facts and path.exists():
            watcher.say(f"{path.name} is there already")
            continue
        if path.exists() and not job.force and row is None:
            raise UserError(f"{path} is there already: {_ADVICE}")
        rows[name] = _row(name, job, settings, path)
        if job.share.rank == 0:
            _write(out, [rows[key] for key in tasks if key in rows], shared)
    ordered = [rows[name] for name in tasks]
    record = _record(ordered, shared)
    if job.share.rank == 0:
        _write(out, ordered, shared)
        write_aside(out.with_suffix(".svg"), tasks_picture(record))
        write_aside(out.with_suffix(".html"), tasks_page(record))
    return record


def _row(name: str, job: Discoveries, settings: Settings, path: Path) -> TaskCircuit:
    start = time.perf_counter()
    outcomes = job.run_all(settings, path)
    circuit, alive = outcomes[0].circuit, [Alive.of(outcome) for outcome in outcomes]
    return {
        "name": name,
        "classes": None if settings.classes is None else list(settings.classes),
        "file": path.name,
        "fingerprint": circuit.fingerprint(),
        "origins": dict(circuit.origins),
        "kl": circuit.kl,
        "edges": len(circuit.decisions),
        "removed": len(circuit.removed),
        "dead": {kind: list(_dead(outcomes, letter)) for letter, kind in KINDS.items()},
        "fidelity": circuit.details["fidelity"],
        "evaluation": circuit.details.get("evaluation"),
        "alive": [each.to_json() for each in alive],
        "heads": served(alive),
        "seconds": round(time.perf_counter() - start, 3),
    }


def _dead(outcomes: Sequence[Outcome], letter: str) -> tuple[float, int]:
    """How many are dead on average, and how many there are."""
    counts = [outcome.dead_of(letter) for outcome in outcomes]
    return round(sum(dead for dead, _ in counts) / len(counts), 3), counts[0][1]


def _overlaps(rows: Sequence[TaskCircuit]) -> dict[str, list[list[dict[str, Any]]]]:
    tasks = [[Alive.from_json(alive) for alive in row["alive"]] for row in rows]
    return {
        kind: [[asdict(cell) for cell in line] for line in overlaps(tasks, letter)] for letter, kind in KINDS.items()
    }


def _record(rows: Sequence[TaskCircuit], settings: Mapping[str, object]) -> TasksRecord:
    return {"settings": settings, "environment": environment(), "tasks": list(rows), "overlap": _overlaps(rows)}


def _write(out: Path, rows: Sequence[TaskCircuit], settings: Mapping[str, object]) -> None:
    _FILE.write(out, rows, settings, environment(), overlap=_overlaps(rows))

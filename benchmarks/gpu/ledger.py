"""cuda.json: what is known so far, written after everything new, and what is printed of it."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.steps import FAILED, LEFT_OUT, RUNNING, STEPS, Event
from vitfx.support.files import WriteError
from vitfx.support.json_files import json_text, write_json

FORMAT = "vitfx-cuda/1"
FILE = "cuda.json"
_PAUSE = 2.0
"""Seconds between two writes while a step is at work; its end is always written."""


class Ledger:
    """Collects the steps' records. A folder that takes no file is no reason to stop: that is part of the record."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        self.path = folder / FILE
        self.record: dict[str, Any] = {
            "settings": dict(settings),
            "environment": None,
            "began": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "seconds": 0.0,
            "unwritten": None,
            "steps": {},
        }
        self._began = time.monotonic()
        self._written = -math.inf
        self._starts: dict[str, float] = {}  #: when each step began, in seconds from the beginning

    @property
    def steps(self) -> dict[str, dict[str, Any]]:
        records: dict[str, dict[str, Any]] = self.record["steps"]
        return records

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._began

    def take(self, event: Event) -> None:
        """Of a process at work: a step's record, or the environment."""
        if "environment" in event:
            self.record["environment"] = event["environment"]
            return
        name, record = event["step"], event["record"]
        before = self.steps.get(name, {}).get("state")
        self.steps[name] = record
        if record["state"] == RUNNING:
            if before is None:
                self._starts[name] = self.seconds
                _say(f"{name}: {next(step.title for step in STEPS if step.name == name)} …")
            if time.monotonic() - self._written >= _PAUSE:
                self.write()
            return
        _say(f"{name}: {record['state']}{_after(record)}{_because(record)}")
        self.write()

    def fail(self, name: str, sentence: str) -> None:
        """A step whose process can't say itself what happened; its figures stay."""
        seconds = self.seconds - self._starts.get(name, self.seconds)
        record = {**self.steps.get(name, {}), "state": FAILED, "seconds": seconds, "error": sentence}
        self.take({"step": name, "record": record})

    def leave_out(self, names: Sequence[str], sentence: str) -> None:
        for name in names:
            self.take({"step": name, "record": {"state": LEFT_OUT, "error": sentence}})

    def unended(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if self.steps.get(name, {}).get("state", RUNNING) == RUNNING]

    def running(self) -> str | None:
        return next((name for name, record in self.steps.items() if record["state"] == RUNNING), None)

    def write(self) -> None:
        before, self.record["unwritten"] = self.record["unwritten"], None
        self.record["seconds"], self._written = self.seconds, time.monotonic()
        try:
            write_json(self.path, FORMAT, _finite(self.record))
        except WriteError as error:
            reason = getattr(error.__cause__, "strerror", None) or error
            sentence = self.record["unwritten"] = f"{self.path} can't be written ({reason})"
            if before is None:
                _say(f"{sentence}: the steps go on, and the record is printed at the end")

    def text(self) -> str:
        return json_text(FORMAT, _finite(self.record))


def _finite(value: Any) -> Any:
    """The same without NaN and infinity, which JSON lacks: they become words."""
    if isinstance(value, Mapping):
        return {name: _finite(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(part) for part in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _after(record: Mapping[str, Any]) -> str:
    return f" after {record['seconds']:.1f} s" if "seconds" in record else ""


def _because(record: Mapping[str, Any]) -> str:
    return f" ({record['error']})" if "error" in record else ""


def _say(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)

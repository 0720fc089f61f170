"""The record of a run that makes models or circuits step by step, from which the same command goes on.

The file is written before the first step and after every one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

from vitfx.support.errors import UserError
from vitfx.support.files import remove_results, writing
from vitfx.support.json_files import read_json, write_json

Step = TypeVar("Step")


@dataclass(frozen=True)
class StepFile(Generic[Step]):
    """One kind of such files."""

    format: str  #: see `vitfx.support.json_files`
    title: str  #: what it is a record of, for messages
    key: str  #: under which the steps are
    from_json: Callable[[dict[str, Any]], Step]  #: raises KeyError or TypeError for anything but a step
    advice: str = "name another folder with `out`, or pass `force` to replace it"

    def read(
        self, path: Path, settings: Mapping[str, object], *, force: bool = False
    ) -> tuple[list[Step], dict[str, Any]]:
        """The steps of an earlier run with the same settings, and the machine that made them; nothing with force, or
        where there is no file.

        settings: all that a step depends on, fingerprints included, JSON-ready, what a user knows first. Raises
        UserError where the file can't be read, is of another format, or has other settings, naming the first.
        """
        if force or not path.exists():
            return [], {}
        record = read_json(path, self.format, self.advice)
        try:
            earlier: dict[str, Any] = record["settings"]
            machine: dict[str, Any] = record["environment"]
            steps = [self.from_json(step) for step in record[self.key]]
            names = dict.fromkeys([*settings, *earlier])
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path} is damaged ({error!r}): {self.advice}") from error
        wanted = json.loads(json.dumps(settings))
        for name in names:
            if wanted.get(name) != earlier.get(name):
                raise UserError(
                    f"{path} is of another {self.title} (its {name} is {earlier.get(name)}, not {wanted.get(name)}): "
                    f"{self.advice}"
                )
        return steps, machine

    def write(
        self,
        path: Path,
        steps: Sequence[Mapping[str, Any]],
        settings: Mapping[str, object],
        machine: Mapping[str, Any],
        **more: object,
    ) -> None:
        """machine: that made the last step, empty before the first. more: what else this kind of file has. Raises
        WriteError."""
        record = {"settings": dict(settings), "environment": dict(machine), **more, self.key: list(steps)}
        write_json(path, self.format, record)


def begin_steps(out: Path, results: Sequence[str]) -> None:
    """Makes the folder and removes earlier results of these names. The caller then writes its record, before any step:
    that marks the folder of a run that was stopped."""
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    remove_results(out, results)


def read_range(option: str, text: str, example: str, above: float) -> tuple[float, float, int]:
    """ "1.2:2.0:5" -> 1.2, 2.0 and 5: two numbers above `above`, rising, and a count. Raises UserError."""
    try:
        low, high, count = (kind(part) for kind, part in zip((float, float, int), text.split(":"), strict=True))
    except ValueError as error:
        raise UserError(f"`{option}` {text} is not LOW:HIGH:COUNT: give one such as {example}") from error
    if not above < low < high < math.inf or count < 2:
        raise UserError(
            f"`{option}` {text} is not a range: give {above:g} < LOW < HIGH and a COUNT of 2 or more, such as {example}"
        )
    return low, high, int(count)

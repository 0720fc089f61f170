"""Files that come from elsewhere: read only where they are files, bounded in size, JSON in depth as well."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from vitfx.support.errors import UserError, in_a_line

MOST_BYTES = 2**31
"""Of a text: plans with a constant for each token have hundreds of millions."""
MOST_DEPTH = 100
"""Of lists and objects in each other."""


def read_bytes(path: Path, advice: str, most: int = MOST_BYTES) -> bytes:
    """What a file holds. advice: ends the sentence of the error, such as "give a report.json that vitfx wrote".

    Raises UserError as `check_file` does, and where it can't be read or has more than `most` bytes.
    """
    check_file(path, advice)
    try:
        if (size := path.stat().st_size) > most:
            raise UserError(f"{path} has {size:,} bytes, more than any such file ({most:,}): {advice}")
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}): {advice}") from error


def check_file(path: Path, advice: str) -> None:
    """Raises UserError for a folder, a pipe or a device, which may never end, and where there is nothing."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}): {advice}") from error
    if not stat.S_ISREG(mode):
        raise UserError(f"{path} is {'a folder' if stat.S_ISDIR(mode) else 'a pipe or a device'} and no file: {advice}")


def read_text(path: Path, advice: str, *, encoding: str = "utf-8", errors: str = "strict") -> str:
    """The same as text. Raises UserError as `read_bytes` does, and where it is no text of this encoding."""
    contents = read_bytes(path, advice)
    try:
        return contents.decode(encoding, errors)
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text ({in_a_line(error)}): {advice}") from error


def read_json_value(path: Path, advice: str) -> Any:
    """What a JSON file holds. Raises UserError as `read_text` does, and where it is no JSON, or nested too deeply."""
    try:
        value = json.loads(read_text(path, advice))
        check_depth(value)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({in_a_line(error)}): {advice}") from error
    return value


def check_depth(value: Any) -> None:
    """Raises ValueError for lists and objects in each other, more than `MOST_DEPTH` deep: what reads them recursively
    would run out of stack."""
    level = [value]
    for _ in range(MOST_DEPTH):
        level = [part for each in level if isinstance(each, list | dict) for part in _parts(each)]
        if not level:
            return
    raise ValueError(f"it is nested more than {MOST_DEPTH} deep")


def _parts(value: list[Any] | dict[str, Any]) -> list[Any]:
    return value if isinstance(value, list) else list(value.values())

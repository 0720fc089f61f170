"""The faults: what is planted where, what it means, and which tests should notice."""

from __future__ import annotations

import hashlib
import json
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
ROOT = FOLDER.parents[1]


class FaultError(Exception):
    """A fault that can't be planted as it stands; the sentence says which and why."""


@dataclass(frozen=True)
class Fault:
    """One change that makes the program wrong."""

    file: str  #: that it is planted in, from the root of the tree
    old: str  #: the text that is replaced, which the file has exactly once
    new: str
    means: str  #: what goes wrong then
    tests: tuple[str, ...]  #: that should notice: files from the root of the tree, or path::name
    equivalent: str = ""  #: why nothing could notice it, where that is so
    untested: str = ""  #: why no test is worth it, where that is so

    @property
    def excuse(self) -> str:
        """Why it may survive, or ""."""
        return self.equivalent or self.untested

    @property
    def test_files(self) -> tuple[str, ...]:
        return tuple(test.partition("::")[0] for test in self.tests)

    def planted_in(self, text: str) -> str:
        """The file's text with the fault. Raises FaultError unless the old text is there exactly once."""
        if (count := text.count(self.old)) != 1:
            raise FaultError(f"{self.file} has {count} times what {self.means!r} replaces, not once: {self.old!r}")
        return text.replace(self.old, self.new)

    def key(self, root: Path) -> str:
        """sha256 of the fault, the file that it is planted in and the tests that should notice."""
        digest = hashlib.sha256(json.dumps(asdict(self)).encode())
        for path in (self.file, *self.test_files):
            digest.update(hashlib.sha256((root / path).read_bytes()).digest())
        return digest.hexdigest()


def read_faults(folder: Path = FOLDER) -> list[Fault]:
    """Of all TOML files in the folder. Raises FaultError for an entry that is no fault."""
    return [_fault(record, path) for path in sorted(folder.glob("*.toml")) for record in _records(path)]


def _records(path: Path) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = tomllib.loads(path.read_text(encoding="utf-8"))["fault"]
    return records


def _fault(record: dict[str, Any], path: Path) -> Fault:
    try:
        return Fault(**{**record, "tests": tuple(record["tests"])})
    except (KeyError, TypeError) as error:
        raise FaultError(f"{path.name} has an entry that is no fault ({error}): {record}") from error

"""Files that are whole or absent, and the folder that a command's results go into."""

from __future__ import annotations

import glob
import os
import re
import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from vitfx.support.errors import UserError

JOURNAL, TRAINING_STATE, RECOVERY_STATE = "discovery.jsonl", "state.pt", "recovery.state"
"""What discoveries, trainings and retrainings go on from, as long as they have not finished."""
UNFINISHED = "unfinished"
"""A file that stands in a run's folder until the last result is written, for runs that can't go on."""
LOCK = ".lock"
"""A file in a folder that a command is writing: see `vitfx.support.locks`."""

_DAY = 86400.0


class WriteError(UserError):
    """A file could not be written; nothing is wrong with what was computed so far."""


@contextmanager
def writing(path: Path, option: str = "`out`") -> Iterator[None]:
    """Turns an OSError while `path` is written into a WriteError. option: the one that names another place."""
    try:
        yield
    except OSError as error:
        raise WriteError(
            f"{path} can't be written ({error.strerror}): make room there or name another place with {option}"
        ) from error


def write_aside(path: Path, contents: bytes | str) -> None:
    """Writes beside `path`, then renames, so that a reader never sees half a file. Raises WriteError.

    Each call writes under a name of its own: processes that write the same target do not touch each other's file.
    """
    with writing(path):
        remove_leftovers(path.parent, f".{glob.escape(path.name)}.*.partial", older=_DAY)
        aside = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
        try:
            aside.write_bytes(contents.encode(errors="surrogateescape") if isinstance(contents, str) else contents)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder that is gone afterwards. Raises WriteError where none can be made."""
    try:
        folder = TemporaryDirectory(prefix="vitfx-")
    except OSError as error:
        raise WriteError(
            f"a temporary folder can't be made ({error.strerror}): make room there, or name another place with the "
            "environment variable TMPDIR"
        ) from error
    with folder as name:
        yield Path(name)


def remove_leftovers(folder: Path, pattern: str = ".*.partial", *, older: float = 0.0) -> None:
    """Removes what writers left that were killed. older: seconds, where another process may still be writing."""
    for leftover in folder.glob(pattern):
        with suppress(OSError):
            if is_leftover(leftover) and leftover.stat().st_mtime <= time.time() - older:
                leftover.unlink()


def is_leftover(path: Path) -> bool:
    """Whether the name is one that `write_aside` writes under."""
    return re.fullmatch(r"\..+\.[0-9a-f]{8}\.partial", path.name) is not None


def check_output(folder: Path, *, force: bool, unfinished: str = UNFINISHED) -> None:
    """Raises UserError where results can't go there; writes nothing.

    Free is a folder that does not exist, is empty but for a lock and leftovers of `write_aside`, or holds what an
    interrupted run leaves: the file `unfinished` to go on from, or `UNFINISHED`; but nothing that another kind of run
    goes on from.
    """
    with writing(folder):
        nearest = next(ancestor for ancestor in (folder, *folder.absolute().parents) if ancestor.exists())
    if not nearest.is_dir():
        where = "is a file" if nearest == folder else f"can't be made, because {nearest} is a file"
        raise UserError(f"{folder} {where}: name another folder with `out`")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"{folder} can't be written, {nearest} does not allow it: name another folder with `out`")
    if force or not folder.exists():
        return
    for name in (JOURNAL, TRAINING_STATE, RECOVERY_STATE):
        if name != unfinished and (folder / name).exists():
            raise UserError(
                f"{folder} has {name}, from which an interrupted run goes on: give that run's command again, name "
                "another folder with `out`, or pass `force` to replace it"
            )
    if any((folder / name).exists() for name in (unfinished, UNFINISHED)):
        return
    if results := sorted(path.name for path in folder.iterdir() if path.name != LOCK and not is_leftover(path)):
        raise UserError(
            f"{folder} is not empty (it has {results[0]}): name another folder with `out`, or pass `force` to replace "
            "it"
        )


def begin_results(folder: Path) -> None:
    """Makes the folder, with `UNFINISHED` in it until the caller removes that. Raises WriteError."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_aside(folder / UNFINISHED, "the command that made this folder has not finished\n")


def remove_results(folder: Path, results: Sequence[str]) -> None:
    """Removes earlier `results` (file names) from the folder and nothing else."""
    for name in results:
        with writing(folder / name):
            (folder / name).unlink(missing_ok=True)


def check_new_file(out: Path, *, force: bool) -> None:
    """Raises UserError where a command can't write the file that --out names; to be called before the work begins."""
    with writing(out):
        if not out.parent.is_dir():
            raise UserError(f"`out` {out} is in a folder that does not exist: make {out.parent} first")
        if out.is_dir():
            raise UserError(f"`out` {out} is a folder: give the name of a file in it")
        if out.exists() and not force:
            raise UserError(f"{out} already exists: give another name with `out`, or `force` to overwrite it")


SWEEP, ROUNDS = "sweep.json", "rounds.json"

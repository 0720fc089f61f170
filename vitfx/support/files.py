"""Files that are whole or not there, and the folder that a command's results go into."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from vitfx.support.errors import UserError

JOURNAL = "discovery.jsonl"
UNFINISHED = "unfinished"
"""A file in the folder of a run that keeps nothing to go on from, until its last result is there."""


class WriteError(UserError):
    """The disk or the folder does not take a file: what was worked out so far is not to blame."""


@contextmanager
def writing(path: Path, option: str = "--out") -> Iterator[None]:
    """What the system says against writing `path`, as a WriteError. option: with which another place is named."""
    try:
        yield
    except OSError as error:
        raise WriteError(
            f"{path} can't be written ({error.strerror}): make room there or name another place with {option}"
        ) from error


def write_aside(path: Path, contents: bytes | str) -> None:
    """Writes beside `path`, then renames, so that a reader never sees half a file. Raises WriteError."""
    aside = aside_of(path)
    with writing(path):
        try:
            aside.write_bytes(contents.encode() if isinstance(contents, str) else contents)
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)


def aside_of(path: Path) -> Path:
    """Where `write_aside` writes before it renames; what a killed process leaves of a first write."""
    return path.with_name(f".{path.name}.partial")


def check_output(folder: Path, *, force: bool, unfinished: str = JOURNAL) -> None:
    """Raises UserError where results can't go there; writes nothing.

    Free is a folder that does not exist, is empty, or holds what a run that was broken off leaves: the file
    `unfinished` to go on from, or a part of its first version, or `UNFINISHED`.
    """
    with writing(folder):
        nearest = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    if not nearest.is_dir():
        where = "is a file" if nearest == folder else f"can't be made, because {nearest} is a file"
        raise UserError(f"{folder} {where}: name another folder with --out")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise UserError(f"{folder} can't be written, {nearest} does not allow it: name another folder with --out")
    if force or not folder.exists() or any((folder / name).exists() for name in (unfinished, UNFINISHED)):
        return
    if others := sorted(one.name for one in folder.iterdir() if one != aside_of(folder / unfinished)):
        raise UserError(
            f"{folder} is not empty (it has {others[0]}): name another folder with --out, or pass --force to replace it"
        )


def begin_results(folder: Path) -> None:
    """Makes the folder, with `UNFINISHED` in it until the caller removes that. Raises WriteError."""
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    write_aside(folder / UNFINISHED, "the command that made this folder was broken off\n")


def remove_results(folder: Path, results: Sequence[str]) -> None:
    """Takes earlier `results` (file names) out of the folder; anything else there is left alone."""
    for name in results:
        with writing(folder / name):
            (folder / name).unlink(missing_ok=True)


def check_new_file(out: Path, *, force: bool) -> None:
    """Raises UserError where a command can't write the one file that --out names, before it works for it."""
    with writing(out):
        if not out.parent.is_dir():
            raise UserError(f"--out {out} is in a folder that does not exist: make {out.parent} first")
        if out.is_dir():
            raise UserError(f"--out {out} is a folder: give the name of a file in it")
        if out.exists() and not force:
            raise UserError(f"{out} is there already: give another name with --out, or --force to overwrite it")


SWEEP, ROUNDS = "sweep.json", "rounds.json"

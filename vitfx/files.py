"""Files that are whole or not there, and the folder that a command's results go into."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from vitfx.errors import UserError

JOURNAL = "discovery.jsonl"


def write_aside(path: Path, contents: bytes | str) -> None:
    """Writes beside `path`, then renames, so that a reader never sees half a file."""
    aside = path.with_name(f".{path.name}.partial")
    aside.write_bytes(contents.encode() if isinstance(contents, str) else contents)
    aside.replace(path)


def check_output(folder: Path, *, force: bool) -> None:
    """Raises UserError where results can't go there; writes nothing.

    Free is a folder that does not exist, is empty, or holds the journal of a run that was broken off.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder} is a file, not a folder: name another with --out")
    parent = folder if folder.exists() else next(one for one in folder.absolute().parents if one.exists())
    if not os.access(parent, os.W_OK | os.X_OK) or not parent.is_dir():
        raise UserError(f"{folder} can't be written, {parent} does not allow it: name another folder with --out")
    if force or not folder.exists() or (folder / JOURNAL).exists():
        return
    if others := sorted(one.name for one in folder.iterdir()):
        raise UserError(
            f"{folder} is not empty (it has {others[0]}): name another folder with --out, or pass --force to replace it"
        )


def prepare_output(folder: Path, results: Sequence[str]) -> None:
    """Makes the folder and takes earlier `results` (file names) out of it; anything else there is left alone."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in results:
        (folder / name).unlink(missing_ok=True)

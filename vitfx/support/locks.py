"""A lock on the place that a command writes to: it says who holds it, and never outlives that process.

The system's lock on the file ends with the process, however that ends. Where a file system has no such locks, the
process named in the file decides.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path

from vitfx.support.errors import UserError
from vitfx.support.files import LOCK, UNFINISHED, check_output, remove_leftovers, writing

if sys.platform != "win32":
    import fcntl

_HELD = (errno.EACCES, errno.EAGAIN)


@dataclass(frozen=True)
class Holder:
    """The process that holds a lock, as its file names it."""

    host: str
    pid: int
    command: str
    since: str  #: date and time, to the second

    @staticmethod
    def current() -> Holder:
        command = " ".join(shlex.join(sys.orig_argv).split())
        return Holder(platform.node(), os.getpid(), command, datetime.now().isoformat(" ", "seconds"))

    def may_be_alive(self) -> bool:
        """False only where that is certain."""
        if self.host != platform.node() or sys.platform == "win32":
            return True
        if self.pid == os.getpid():
            # This process holds no lock yet: the number is a dead one's, such as 1 in a container.
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        except PermissionError:
            pass
        return True


@contextmanager
def hold_folder(folder: Path, *, force: bool, unfinished: str = UNFINISHED) -> Iterator[None]:
    """Makes the folder and keeps other commands out of it while the block runs; afterwards an empty one is removed.

    force, unfinished: see `check_output`, which is called again once the folder is held: another command may have
    finished there meanwhile. Raises UserError, also where another process holds the folder.
    """
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with _hold(folder / LOCK, folder):
            check_output(folder, force=force, unfinished=unfinished)
            remove_leftovers(folder)
            yield
    finally:
        with suppress(OSError):
            for path in missing:
                path.rmdir()


@contextmanager
def hold_file(path: Path) -> Iterator[None]:
    """Keeps other commands from writing the file `path`, and what goes beside it, while the block runs."""
    with _hold(path.with_name(f".{path.name}{LOCK}"), path):
        yield


@contextmanager
def _hold(lock: Path, target: Path) -> Iterator[None]:
    with writing(lock):
        descriptor = _open_locked(lock, target)
    try:
        with writing(lock):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, json.dumps(asdict(Holder.current())).encode())
        yield
    finally:
        # Removed while it is held: whoever opened it meanwhile finds out that it is gone.
        with suppress(OSError):
            lock.unlink()
        os.close(descriptor)
        if sys.platform == "win32":
            # Open files can't be removed there.
            lock.unlink(missing_ok=True)


def _open_locked(lock: Path, target: Path) -> int:
    """The lock's file, opened and locked. Raises UserError where another process holds it."""
    while True:
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        held = _is_held(descriptor)
        holder = _read_holder(lock) if held is not False else None
        if held or (holder is not None and holder.may_be_alive()):
            os.close(descriptor)
            details = (
                f" since {holder.since} (process {holder.pid} on {holder.host}: {holder.command})" if holder else ""
            )
            last_resort = "" if held else f", or, if that process has ended, delete {lock}"
            raise UserError(
                f"another command has been writing {target}{details}: wait until it ends, or name another place with "
                f"`out`{last_resort}"
            )
        if _is_same_file(descriptor, lock):
            return descriptor
        # The last holder removed the file between the opening and the locking.
        os.close(descriptor)


def _is_held(descriptor: int) -> bool | None:
    """Locks the file, unless another process has; None where the file system has no locks."""
    if sys.platform == "win32":
        return None
    try:
        # Not flock, which the workers that a training forked would hold on to after its end.
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return True if error.errno in _HELD else None
    return False


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _read_holder(lock: Path) -> Holder | None:
    try:
        return Holder(**json.loads(lock.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None

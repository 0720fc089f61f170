"""How a command ends: its exit code, and one sentence on standard error if something went wrong."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from vitfx.deploy.export import ExportMismatch
from vitfx.graph.verify import VerificationError
from vitfx.support.errors import UserError, as_options
from vitfx.support.interrupts import termination_as_interrupt
from vitfx.support.processes import ToldElsewhere, is_first_process, let_speak

INTERRUPTED, TERMINATED = 130, 143
GOES_ON = "stopped; the same command goes on where it stopped"
BEGINS_ANEW = "stopped; the same command begins anew"
GOES_ON_UNFORCED = "stopped; the same command without --force goes on where it stopped"


def ending(work: Callable[[], int | None], stopped: Callable[[], str] = lambda: "stopped") -> int:
    """Does the work of a command and returns its exit code: that of `work`, 0 for None.

    2 for a UserError, 1 where a proof failed or an exported file differs from its model, 130 for Ctrl-C, 143 for
    SIGTERM, which ends a command in the same way.
    stopped: returns the sentence for both; nothing is printed for "".
    """
    with termination_as_interrupt() as termination:
        code = _ended(work, stopped)
    return TERMINATED if termination.asked and code == INTERRUPTED else code


def _ended(work: Callable[[], int | None], stopped: Callable[[], str]) -> int:
    try:
        return work() or 0
    except ToldElsewhere:
        let_speak()
        return 2
    except UserError as error:
        return _print_error(f"error: {error}", 2)
    except VerificationError as error:
        if not is_first_process():
            # All have the same model, and the first one prints this.
            let_speak()
            return 1
        return _print_error(f"error: a proof failed, its model was not written: {error}", 1)
    except ExportMismatch as error:
        return _print_error(f"error: the exported file failed its check and was removed: {error}", 1)
    except KeyboardInterrupt:
        if sentence := stopped():
            return _print_error(f"\n{sentence}", INTERRUPTED)
        return INTERRUPTED


def _print_error(sentence: str, code: int) -> int:
    print(as_options(sentence), file=sys.stderr)
    return code


def going_on(record: Path, *, force: bool) -> Callable[[], str]:
    """For `ending`'s `stopped`, of a run that goes on from `record` unless --force was given.

    With force the same command would begin anew: it goes on without it, once this run has written the record.
    """
    before = _stamp(record)

    def sentence() -> str:
        if not force:
            return GOES_ON
        return BEGINS_ANEW if _stamp(record) == before else GOES_ON_UNFORCED

    return sentence


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_ino

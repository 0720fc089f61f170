"""Another process that holds a place."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

HOLD = """
import signal, sys
from pathlib import Path
from vitfx.support.locks import hold_file, hold_folder
# A shell's background job is started with Ctrl-C ignored, which its children inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)
path = Path(sys.argv[1])
with hold_file(path) if path.suffix else hold_folder(path, force=False):
    print("held", flush=True)
    try:
        sys.stdin.read()
    except KeyboardInterrupt:
        pass
"""


@contextmanager
def another_command(path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds `path` until its standard input ends."""
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())

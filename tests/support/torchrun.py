"""A script in two processes, as torchrun starts them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_two(script: str, argument: Path, seconds: int) -> subprocess.CompletedProcess[str]:
    """Writes the script beside its argument, or into it where that is a folder, and runs it; each process on one thread
    of the processor. seconds: after which it is ended."""
    path = (argument if argument.is_dir() else argument.parent) / "process.py"
    path.write_text(script)
    return subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(path), str(argument)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        text=True,
        capture_output=True,
        timeout=seconds,
        check=False,
    )

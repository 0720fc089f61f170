"""Step 8: one process of torchrun, NCCL on a GPU and gloo on a CPU: sums, DDP's gradients, a discovery with a share."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from benchmarks.gpu.context import Context, Figures
from benchmarks.gpu.supervise import ROOT

_PATIENCE = 60.0


def run(context: Context, figures: Figures) -> None:
    """Raises RuntimeError with what torchrun said last where it fails."""
    out = context.folder / "group.json"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=1"]
    command += ["-m", "benchmarks.gpu.group_worker", str(context.device), str(context.seed), str(out)]
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    figures["command"] = " ".join(["torchrun", *command[3:-1], "group.json"])
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        output, _ = process.communicate(timeout=max(_PATIENCE, context.left()))
    finally:
        # Asked, and not killed, torchrun takes the process that it started with it.
        process.terminate()
        process.wait()
    if process.returncode or not out.is_file():
        raise RuntimeError(f"torchrun ended with {process.returncode}: {output[-3000:]}")
    figures |= json.loads(out.read_text(encoding="utf-8"))


def lines(figures: Figures) -> list[str]:
    if "backend" not in figures:
        return []
    return [
        f"{figures['backend']}, {figures['world']} process on {figures['device']}: "
        f"sum off by {figures['sum_error']:g}, DDP's gradients by {figures['gradient_error']:.0e}",
        f"a discovery with a share: {figures['agreeing']} of {figures['decisions']} decisions as without",
    ]

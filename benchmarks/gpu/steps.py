"""The steps, in the order of their worth, and how each is run, timed and recorded."""

from __future__ import annotations

import contextlib
import gc
import importlib
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import torch

from benchmarks.gpu.context import Context, Figures, failure
from benchmarks.gpu.timing import TimeUp, time_limit
from vitfx.support.devices import is_gpu, synchronize

DONE, IN_PART, FAILED, LEFT_OUT, RUNNING = "done", "in part", "failed", "left out", "running"
_GRACE = 1.3
"""A step that does not end by itself is stopped after so many times its time."""
_LAST_GRACE = 2.0
"""Seconds beyond the time of all, for the last step to end by itself."""


class Module(Protocol):
    """A step's file."""

    def run(self, context: Context, figures: Figures) -> None:
        """Puts what it finds into `figures`, so that what is there remains where it fails."""

    def lines(self, figures: Figures) -> list[str]:
        """For the table: a few lines, whatever part of the figures is there."""


@dataclass(frozen=True)
class Step:
    """A step by its name, which is its file's as well.

    Files are imported when their step runs, so that one that can't be imported is a failed step and no more.
    """

    name: str
    title: str
    weight: float  #: its share of the time, beside the other steps'
    least: float  #: seconds on a GPU that it can't do without
    lines: int  #: of the table, at most, below its own

    def load(self) -> Module:
        return cast(Module, importlib.import_module(f"benchmarks.gpu.{self.name}"))


STEPS = (
    Step("proof", "front end, deletion and proof on the device", 40, 15, 3),
    Step("discovery", "the CPU's decisions, and how many times faster", 100, 20, 4),
    Step("deletion", "time ratio against FLOPs ratio", 140, 15, 12),
    Step("goal", "a speed-up as a goal, from search to measurement", 120, 30, 3),
    Step("forms", "the ONNX file's forms on ONNX Runtime", 50, 20, 6),
    Step("rewrites", "exact rewrites", 50, 10, 6),
    Step("training", "training and recovery with AMP", 25, 10, 5),
    Step("group", "one process of torchrun, with its collectives", 20, 10, 2),
    Step("memory", "peak memory of each model", 10, 5, 3),
)
NAMES = tuple(step.name for step in STEPS)

Event = dict[str, Any]
"""What a process says of its work: {"step": its name, "record": all that is known of it}."""


def run_steps(names: Sequence[str], context: Context, seconds: float, emit: Callable[[Event], None]) -> bool:
    """Runs the steps in so many seconds, and says after each, and while it works, what is known.

    True, or False where a step left the device unusable: then the rest needs another process.
    """
    deadline = time.monotonic() + seconds
    chosen = [step for step in STEPS if step.name in names]
    for at, step in enumerate(chosen):
        left = deadline - time.monotonic()
        if left < (step.least if is_gpu(context.device) else 0):
            record = {"state": LEFT_OUT, "error": f"{max(left, 0):.0f} s were left, and it needs {step.least:.0f}"}
            emit({"step": step.name, "record": record})
            continue
        given = left * step.weight / sum(later.weight for later in chosen[at:])
        given = max(given, step.least) if is_gpu(context.device) else given
        record = run_step(step, context, given, min(given * _GRACE, left + _LAST_GRACE), emit)
        if record["state"] == FAILED and not _usable(context.device):
            return False
    return True


def run_step(
    step: Step, context: Context, seconds: float, at_most: float, emit: Callable[[Event], None]
) -> dict[str, Any]:
    """The step's record, which is emitted as well. KeyboardInterrupt alone comes through."""
    figures: Figures = {}
    record: dict[str, Any] = {"state": RUNNING, "seconds_given": seconds, "figures": figures}
    began = time.monotonic()

    def keep() -> None:
        record["seconds"] = time.monotonic() - began
        emit({"step": step.name, "record": record})

    context.deadline, context.keep = began + seconds, keep
    context.failures, context.left_out, context.peak_mib = 0, 0, 0.0
    keep()
    _reset_peak(context.device)
    try:
        with time_limit(at_most, f"the step {step.name}"):
            step.load().run(context, figures)
            synchronize(context.device)
        record["state"] = IN_PART if context.failures else DONE
    except (Exception, SystemExit) as error:
        record |= {"state": IN_PART if isinstance(error, TimeUp) and figures else FAILED, **failure(error)}
    record["rows_left_out"] = context.left_out
    with contextlib.suppress(RuntimeError):
        # Of a device that a step left unusable no memory can be read or given back.
        record["peak_memory_mib"] = _peak(context)
        _clean_up(context.device)
    keep()
    return record


def _reset_peak(device: torch.device) -> None:
    if is_gpu(device):
        torch.cuda.reset_peak_memory_stats(device)


def _peak(context: Context) -> dict[str, float]:
    """device: allocated by torch and reserved by it, of this step. host: of this process so far."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    peak = {"host": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit}
    if is_gpu(context.device):
        allocated, reserved = torch.cuda.max_memory_allocated, torch.cuda.max_memory_reserved
        peak["device"] = max(context.peak_mib, allocated(context.device) / 2**20)
        peak["device_reserved"] = reserved(context.device) / 2**20
    return peak


def _clean_up(device: torch.device) -> None:
    torch.compiler.reset()
    gc.collect()
    if is_gpu(device):
        torch.cuda.empty_cache()


def _usable(device: torch.device) -> bool:
    """An illegal access, say, spoils the device for the rest of the process."""
    try:
        torch.ones(8, device=device).sum().item()
    except RuntimeError:
        return False
    return True

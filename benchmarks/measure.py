"""Latency of every model on every runtime at every batch size, models in turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from benchmarks.contenders import Contender
from benchmarks.workloads import UnavailableError, Variant, prepare
from vitfx.images.image_set import ImageSet
from vitfx.support.devices import synchronize
from vitfx.support.progress import Report, Watcher
from vitfx.support.timing import Ratio, Timing, batch_to_time, ratio, time_interleaved

T = TypeVar("T")


@dataclass(frozen=True)
class LatencyRow:
    """One model on one runtime at one batch size."""

    model: str
    runtime: str
    batch: int
    timing: Timing | None = None
    ratio: Ratio | None = None  #: its time over the first model's, None where that was not timed
    unavailable: str | None = None  #: why there is no timing

    def to_json(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "runtime": self.runtime,
            "batch": self.batch,
            **(self.timing.to_json() if self.timing else {}),
            "ratio": asdict(self.ratio) if self.ratio else None,
            "unavailable": self.unavailable,
        }


def unsteady(rows: Sequence[LatencyRow]) -> int:
    """How many rows have a tenth of their rounds at twice the median or more: the machine was not idle."""
    return sum(row.timing is not None and row.timing.p90_ms >= 2 * row.timing.median_ms for row in rows)


def measure_latency(
    contenders: Sequence[Contender],
    ways: Sequence[Variant],
    images: ImageSet,
    batches: Sequence[int],
    rounds: int,
    threads: int,
    watcher: Watcher,
) -> list[LatencyRow]:
    """A row for each runtime, batch size and model.

    The models of one runtime and batch size take turns. Runtimes do not: the threads of one spin on for a moment, which
    would slow down whichever model of the other comes next.
    """
    rows: list[LatencyRow] = []
    for batch in batches:
        pixels = batch_to_time(next(iter(images.batches(batch))).pixels, batch)
        for way in ways:
            report = watcher.bar(f"{way.label}, batch {batch}")
            rows += _time_models(contenders, way, pixels, rounds, threads, report)
    return rows


def timed(call: Callable[[], T], device: torch.device) -> tuple[float, T]:
    """Wall-clock seconds, and what the call returns."""
    synchronize(device)
    begin = time.perf_counter()
    result = call()
    synchronize(device)
    return time.perf_counter() - begin, result


def _time_models(
    contenders: Sequence[Contender],
    way: Variant,
    pixels: Tensor,
    rounds: int,
    threads: int,
    report: Report,
) -> list[LatencyRow]:
    # torch keeps compiled code by the module's class, and for a limited number of shapes.
    torch.compiler.reset()
    runs: dict[str, Callable[[], None]] = {}
    reasons: dict[str, str] = {}
    for contender in contenders:
        try:
            runs[contender.name] = prepare(way, contender, pixels, threads)
        except UnavailableError as error:
            reasons[contender.name] = str(error)
    timings: dict[str, Timing] = {}
    if runs:
        timings = time_interleaved(runs, rounds=rounds, synchronize=lambda: synchronize(way.device), progress=report)
    first = timings.get(contenders[0].name)
    return [
        LatencyRow(
            model=name,
            runtime=way.label,
            batch=len(pixels),
            timing=timings.get(name),
            ratio=ratio(timings[name], first) if first and name in timings else None,
            unavailable=reasons.get(name),
        )
        for name in (contender.name for contender in contenders)
    ]

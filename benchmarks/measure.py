"""Latency of every model on every runtime at every batch size, models in turns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor

from benchmarks.contenders import Contender
from benchmarks.workloads import UnavailableError, Variant, prepare
from vitfx.images.image_set import ImageSet
from vitfx.support.devices import synchronize
from vitfx.support.timing import Ratio, Timing, ratio, time_interleaved


@dataclass(frozen=True)
class LatencyRow:
    """One model on one runtime at one batch size.

    Without a timing, `unavailable` says why. ratio: its time by the first model's, None where that has none.
    """

    model: str
    runtime: str
    batch: int
    timing: Timing | None = None
    ratio: Ratio | None = None
    unavailable: str | None = None

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
    """How many rows have a tenth of their rounds at twice the median or more: others used the machine."""
    return sum(row.timing is not None and row.timing.p90_ms >= 2 * row.timing.median_ms for row in rows)


def measure_latency(
    contenders: Sequence[Contender],
    ways: Sequence[Variant],
    images: ImageSet,
    batches: Sequence[int],
    rounds: int,
    threads: int,
    progress: Progress,
) -> list[LatencyRow]:
    """A row for each runtime, batch size and model.

    The models of one runtime and batch size take turns. Runtimes do not: the threads of one go on spinning
    for a moment, at the cost of whichever model of the other comes next.
    """
    task = progress.add_task("timing", total=len(ways) * len(batches) * rounds)
    rows: list[LatencyRow] = []
    for batch in batches:
        pixels = _timing_pixels(images, batch)
        for way in ways:
            progress.update(task, description=f"{way.label}, batch {batch}")
            rows += _time_models(contenders, way, pixels, rounds, threads, lambda: progress.advance(task))
    return rows


def _time_models(
    contenders: Sequence[Contender],
    way: Variant,
    pixels: Tensor,
    rounds: int,
    threads: int,
    advance: Callable[[], None],
) -> list[LatencyRow]:
    # Compiled code is kept per class of module, and there is a limit to how many shapes it is kept for.
    torch.compiler.reset()
    runs: dict[str, Callable[[], None]] = {}
    reasons: dict[str, str] = {}
    for one in contenders:
        try:
            runs[one.name] = prepare(way, one, pixels, threads)
        except UnavailableError as error:
            reasons[one.name] = str(error)
    timings: dict[str, Timing] = {}
    if runs:
        timings = time_interleaved(
            runs, rounds=rounds, synchronize=lambda: synchronize(way.device), progress=lambda *_: advance()
        )
    first = timings.get(contenders[0].name)
    return [
        LatencyRow(
            model=one.name,
            runtime=way.label,
            batch=len(pixels),
            timing=timings.get(one.name),
            ratio=ratio(timings[one.name], first) if first and one.name in timings else None,
            unavailable=reasons.get(one.name),
        )
        for one in contenders
    ]


def _timing_pixels(images: ImageSet, batch: int) -> Tensor:
    """(batch, C, H, W) of real images, again and again where there are fewer."""
    pixels = next(iter(images.batches(batch))).pixels
    repeats = -(-batch // len(pixels))
    return pixels.repeat(repeats, 1, 1, 1)[:batch]

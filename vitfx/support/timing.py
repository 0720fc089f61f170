"""Wall-clock times for comparison, taken in turns."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from vitfx.support.errors import UserError


@dataclass(frozen=True)
class Timing:
    """The times of one run."""

    samples_ms: tuple[float, ...]  #: milliseconds, one per round, in order

    @property
    def rounds(self) -> int:
        return len(self.samples_ms)

    @property
    def median_ms(self) -> float:
        return float(np.median(self.samples_ms))

    @property
    def p10_ms(self) -> float:
        return float(np.percentile(self.samples_ms, 10))

    @property
    def p90_ms(self) -> float:
        return float(np.percentile(self.samples_ms, 90))

    def to_json(self) -> dict[str, Any]:
        return {
            "median_ms": self.median_ms,
            "p10_ms": self.p10_ms,
            "p90_ms": self.p90_ms,
            "rounds": self.rounds,
        }


@dataclass(frozen=True)
class Ratio:
    """The time of a divided by that of b, in two ways; where they differ widely, the machine's speed drifts."""

    paired: float  #: median of the ratios within each round, which a drift of the machine's speed hardly touches
    of_medians: float  #: ratio of the medians


def ratio(a: Timing, b: Timing) -> Ratio:
    """The time of a divided by that of b, both from the same call of `time_interleaved`."""
    if a.rounds != b.rounds:
        raise ValueError(f"timings of {a.rounds} and {b.rounds} rounds were not taken in turns")
    paired = np.median(np.divide(a.samples_ms, b.samples_ms))
    return Ratio(paired=float(paired), of_medians=a.median_ms / b.median_ms)


def time_interleaved(
    runs: Mapping[str, Callable[[], None]],
    *,
    warmup: int = 3,
    rounds: int = 20,
    min_seconds: float = 0.0,
    synchronize: Callable[[], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Timing]:
    """Times each run once a round, one after the other, so that a drift of the machine's speed affects all alike.

    Each round starts with another run, so that none is always the first or always follows the same one.

    rounds, min_seconds: the least number of rounds, and the least time that they take together.
    synchronize: waits for a device that runs asynchronously; called before each reading of the clock.
    progress: called with (rounds done, rounds expected) after each round.
    """
    if not runs:
        raise ValueError("there is nothing to time")
    if rounds < 1 or warmup < 0:
        raise UserError(f"rounds is {rounds} and warm-up {warmup}: give at least 1 and at least 0")
    wait = synchronize or _nothing
    names = list(runs)
    for _ in range(warmup):
        for name in names:
            runs[name]()
    samples: dict[str, list[float]] = {name: [] for name in names}
    done, spent_ms = 0, 0.0
    while done < rounds or spent_ms < min_seconds * 1e3:
        start = done % len(names)
        for name in names[start:] + names[:start]:
            elapsed = _milliseconds(runs[name], wait)
            samples[name].append(elapsed)
            spent_ms += elapsed
        done += 1
        if progress is not None:
            by_time = math.ceil(done * min_seconds * 1e3 / spent_ms) if spent_ms else rounds
            progress(done, max(rounds, by_time, done))
    return {name: Timing(tuple(values)) for name, values in samples.items()}


def batch_to_time(images: Tensor, size: int) -> Tensor:
    """(size, C, H, W): the first images, repeated where there are fewer."""
    return images.repeat(-(-size // len(images)), 1, 1, 1)[:size]


def _milliseconds(run: Callable[[], None], wait: Callable[[], None]) -> float:
    wait()
    begin = time.perf_counter_ns()
    run()
    wait()
    return (time.perf_counter_ns() - begin) / 1e6


def _nothing() -> None:
    """The synchronization of a device that needs none."""

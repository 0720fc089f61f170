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

FEWEST_ROUNDS = 3
"""Of which a median can be told."""
_RESAMPLES = 400


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


@dataclass(frozen=True)
class SpeedUp:
    """How many times faster one run is than another, with what the rounds say of its error."""

    value: float  #: ratio of the tenth percentiles, which disturbances of a shared machine reach least
    low: float  #: ends of its 90 % confidence interval
    high: float

    @property
    def width(self) -> float:
        """Of the interval, as a share of the value."""
        return (self.high - self.low) / self.value

    def __str__(self) -> str:
        return f"{self.value:.2f}× ({self.low:.2f} to {self.high:.2f})"


def speed_up(slow: Timing, fast: Timing) -> SpeedUp:
    """Both from the same call of `time_interleaved`. The interval is the percentile bootstrap's over rounds (Efron
    1979), whose pairs stay together."""
    pairs = np.array([slow.samples_ms, fast.samples_ms])
    drawn = np.random.default_rng(0).integers(pairs.shape[1], size=(_RESAMPLES, pairs.shape[1]))
    slows, fasts = np.percentile(pairs[:, drawn], 10, axis=2)
    low, high = np.percentile(slows / fasts, (5, 95))
    return SpeedUp(slow.p10_ms / fast.p10_ms, float(low), float(high))


def time_interleaved(
    runs: Mapping[str, Callable[[], None]],
    *,
    warmup: int = 3,
    rounds: int = 20,
    min_seconds: float = 0.0,
    max_seconds: float = math.inf,
    settled: Callable[[Mapping[str, Timing]], bool] | None = None,
    synchronize: Callable[[], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Timing]:
    """Times each run once a round, one after the other, so that a drift of the machine's speed affects all alike.

    Each round starts with another run, so that none is always the first or always follows the same one.

    rounds, min_seconds: the least number of rounds, and the least time that they take together.
    max_seconds: after this time `FEWEST_ROUNDS` are enough, so that a slow model does not hold its user up; a warm-up
        ends after a tenth of it.
    settled: once there are enough rounds, whether their times are exact enough; otherwise there are more, up to
        `max_seconds`.
    synchronize: waits for a device that runs asynchronously; called before each reading of the clock.
    progress: called with (rounds done, rounds expected) after each round.
    """
    if not runs:
        raise ValueError("there is nothing to time")
    if rounds < 1 or warmup < 0:
        raise UserError(f"rounds is {rounds} and warm-up {warmup}: give at least 1 and at least 0")
    wait = synchronize or _nothing
    names = list(runs)
    warm_ms = 0.0
    for _ in range(warmup):
        if warm_ms >= max_seconds * 1e2:
            break
        warm_ms += sum(_milliseconds(runs[name], wait) for name in names)
    samples: dict[str, list[float]] = {name: [] for name in names}
    done, spent_ms, next_look = 0, 0.0, rounds
    while done < FEWEST_ROUNDS or spent_ms < max_seconds * 1e3:
        if done >= next_look and spent_ms >= min_seconds * 1e3:
            if settled is None or settled(_timings(samples)):
                break
            next_look = math.ceil(1.2 * done)  # A look costs as much as there are rounds.
        start = done % len(names)
        for name in names[start:] + names[:start]:
            elapsed = _milliseconds(runs[name], wait)
            samples[name].append(elapsed)
            spent_ms += elapsed
        done += 1
        if progress is not None:
            progress(done, max(done, _expected(rounds, min_seconds, max_seconds, spent_ms / done)))
    return _timings(samples)


def _timings(samples: Mapping[str, list[float]]) -> dict[str, Timing]:
    return {name: Timing(tuple(values)) for name, values in samples.items()}


def _expected(rounds: int, min_seconds: float, max_seconds: float, round_ms: float) -> int:
    """How many rounds of this time there will be."""
    if not round_ms:
        return rounds
    wanted = max(rounds, math.ceil(min_seconds * 1e3 / round_ms))
    if round_ms * wanted <= max_seconds * 1e3:
        return wanted
    return min(wanted, max(FEWEST_ROUNDS, math.ceil(max_seconds * 1e3 / round_ms)))


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

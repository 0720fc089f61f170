"""Times as CUDA wants them taken: warm, by events, with inputs that are not in the cache, and in turns.

Clocks are left alone. On a CPU, for a dry run, the same by the clock on the wall.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from vitfx.support.devices import is_gpu, synchronize
from vitfx.support.timing import Timing

if TYPE_CHECKING:
    from torch.cuda import _POOL_HANDLE

Run = Callable[[Tensor], object]
"""Runs a model on a batch that lies on the device already."""
_WARM_UPS, _FEWEST_ROUNDS = 3, 5
_MOST_INPUTS = 256
_NO_CACHE_SIZE = 128 * 2**20
"""Bytes, where the device does not say how large its L2 cache is."""


class TimeUp(Exception):
    """Something took longer than it was given."""


@contextmanager
def time_limit(seconds: float, name: str) -> Iterator[None]:
    """Raises TimeUp within the block once the time is over, as soon as Python runs again.

    Limits may be nested. In another thread than the main one, which alone is given signals, there is none.
    """
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise TimeUp(f"{name} took longer than the {seconds:.0f} s that it was given")

    began, before = time.monotonic(), signal.signal(signal.SIGALRM, ring)
    outer, _ = signal.setitimer(signal.ITIMER_REAL, max(seconds, 1e-3))
    if outer and outer < seconds:
        signal.setitimer(signal.ITIMER_REAL, outer)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if outer:
            signal.setitimer(signal.ITIMER_REAL, max(outer - (time.monotonic() - began), 1e-3))


def rotated_inputs(shape: Sequence[int], dtype: torch.dtype, device: torch.device, seed: int) -> list[Tensor]:
    """Random batches of this shape, together twice as large as the L2 cache: no run finds its input there."""
    size = torch.Size(shape).numel() * dtype.itemsize
    count = 2
    if is_gpu(device):
        cache = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0) or _NO_CACHE_SIZE
        count = min(max(2, -(-2 * cache // size)), _MOST_INPUTS)
    generator = torch.Generator(device).manual_seed(seed)
    return [torch.randn(*shape, device=device, generator=generator).to(dtype) for _ in range(count)]


def time_in_turns(
    runs: Mapping[str, Run], inputs: Sequence[Tensor], device: torch.device, *, rounds: int, seconds: float
) -> dict[str, Timing]:
    """Times each run once a round, on the next input every time; each round starts with the next run.

    rounds: at most; fewer where they would take longer than `seconds`, but five at least, or `rounds` if that is less.
    """
    names, number = list(runs), 0
    for _ in range(_WARM_UPS):
        began = time.perf_counter()
        for name in names:
            runs[name](inputs[number % len(inputs)])
            number += 1
        synchronize(device)
        each = time.perf_counter() - began
    rounds = min(rounds, max(_FEWEST_ROUNDS, int(seconds / each)))
    samples: dict[str, list[float]] = {name: [] for name in names}
    for start in range(rounds):
        first = start % len(names)
        for name in names[first:] + names[:first]:
            samples[name].append(_milliseconds(runs[name], inputs[number % len(inputs)], device))
            number += 1
    return {name: Timing(tuple(values)) for name, values in samples.items()}


def _milliseconds(run: Run, pixels: Tensor, device: torch.device) -> float:
    synchronize(device)
    if not is_gpu(device):
        began = time.perf_counter()
        run(pixels)
        return (time.perf_counter() - began) * 1e3
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run(pixels)
    end.record()
    end.synchronize()
    return float(begin.elapsed_time(end))


def capture(run: Run, example: Tensor, pool: _POOL_HANDLE | None = None) -> Run:
    """The run as a CUDA graph: one launch, which copies its input to a fixed place first, as a user would have to.

    The graph reads the run's weights where they lie, so that what it returns keeps the run.
    pool: memory that several graphs share, whose answers are then not kept from one launch to the next.
    """
    still = example.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(_WARM_UPS):
            run(still)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, pool=pool):
        answer = run(still)

    return _Captured(run, graph, still, answer)


@dataclass(frozen=True)
class _Captured:
    run: Run  #: whose weights the graph reads
    graph: torch.cuda.CUDAGraph
    input: Tensor
    answer: object

    def __call__(self, pixels: Tensor) -> object:
        self.input.copy_(pixels)
        self.graph.replay()
        return self.answer

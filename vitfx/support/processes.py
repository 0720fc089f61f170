"""Several processes on one discovery: `torchrun` starts them, each holds a share of the images, and all decide alike.

Every process runs the same code on the same sums, to the bit, so that every process takes the same decisions. The first
alone writes and speaks. torchrun ends the others as soon as one ends with an exit code that is not 0.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from vitfx.support.devices import GPU, is_gpu, pick_device
from vitfx.support.errors import UserError

_TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others before it gives up."""

_PATIENCE = timedelta(days=1)
"""The same where the first works for all meanwhile: to decode a large data set takes it hours."""

_SPEAKING = 10.0
"""Seconds that a process waits for the one that says what is wrong; torchrun ends it as soon as that one has ended."""

T = TypeVar("T")


class ToldElsewhere(UserError):
    """Another process says what is wrong; this one only ends."""


class OwnFailure(UserError):
    """This process alone, which need not be the first, can't go on, and has to say so."""


class Distributed:
    """One of torchrun's processes.

    device: on which values are exchanged; NCCL has the GPU alone.
    """

    def __init__(self, device: torch.device) -> None:
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._device = device if is_gpu(device) else torch.device("cpu")
        patient = dist.new_group(timeout=_PATIENCE)
        assert isinstance(patient, dist.ProcessGroup)
        self._patient = patient
        # NCCL connects when something is first exchanged, for which it has the shorter time.
        self.broadcast(None)

    def sum(self, value: Tensor) -> Tensor:
        """Gathered, then added in the order of the processes: the same to the bit on each, whatever the backend does.

        value: of the same shape and type on every process.
        """
        mine = value.detach().to(self._device).contiguous()
        parts = [torch.empty_like(mine) for _ in range(self.world)]
        dist.all_gather(parts, mine)
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total.to(value.device)

    def broadcast(self, value: Any) -> Any:
        holder = [value]
        dist.broadcast_object_list(holder, src=0, group=self._patient, device=self._device)
        return holder[0]


def started_by_torchrun() -> bool:
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def share_device(name: str) -> torch.device:
    """`pick_device`, but under torchrun the GPU of this process's own number. Raises UserError."""
    device = pick_device(name)
    if not started_by_torchrun() or not is_gpu(device) or int(os.environ["WORLD_SIZE"]) == 1:
        return device
    if name not in ("auto", GPU):
        raise UserError(f"--device {name} would put all processes on one GPU: leave the number out")
    here, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if here >= there:
        raise OwnFailure(
            f"process {os.environ['RANK']} is number {here + 1} on a machine with {there} GPUs: start as many as there "
            f"are, with --nproc-per-node={there}, or add --device cpu"
        )
    return pick_device(f"{GPU}:{here}")


@contextmanager
def open_share(device: torch.device) -> Iterator[Share]:
    """This process's share among those that torchrun started; of a command started alone, all.

    NCCL on GPUs, gloo on CPUs. An error leaves at once, without waiting for the other processes.
    """
    if not started_by_torchrun():
        yield Alone()
        return
    if is_gpu(device):
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if is_gpu(device) else "gloo", timeout=_TIMEOUT)
    yield Distributed(device)
    dist.destroy_process_group()


def on_first(share: Share, function: Callable[[], T]) -> T:
    """What a function gives on the first process, for all; the others do not run it.

    Raises the first process's UserError, on the others as ToldElsewhere.
    """
    value: T | None = None
    error: UserError | None = None
    if share.rank == 0:
        try:
            value = function()
        except UserError as found:
            error = found
    value, failed = share.broadcast((value, error is not None))
    if failed:
        raise error or ToldElsewhere
    return value


@contextmanager
def first_holds(share: Share, context: AbstractContextManager[None]) -> Iterator[None]:
    """Enters a context on the first process alone. Raises what `on_first` does."""
    with ExitStack() as stack:
        on_first(share, lambda: stack.enter_context(context))
        yield


def on_each(share: Share, function: Callable[[], T]) -> T:
    """What a function, which does not itself exchange anything, gives on each process.

    Raises the lowest process's UserError there, OwnFailure where that is not the first; on the others ToldElsewhere.
    """
    error = None
    try:
        value = function()
    except UserError as found:
        error = found
    failed = torch.zeros(share.world)
    failed[share.rank] = error is not None
    failing = share.sum(failed).nonzero().flatten().tolist()
    if failing:
        if error is None or failing[0] != share.rank:
            raise ToldElsewhere
        raise error if share.rank == 0 else OwnFailure(f"process {share.rank}: {error}") from error
    return value


def let_speak() -> None:
    """To be called before a process ends on ToldElsewhere: it would take the process that speaks with it."""
    if started_by_torchrun():
        time.sleep(_SPEAKING)


@contextmanager
def first_says(first: bool) -> Iterator[None]:
    """UserErrors within are raised by all processes, or by the first: on the others as ToldElsewhere."""
    try:
        yield
    except OwnFailure:
        raise
    except UserError as error:
        if first:
            raise
        raise ToldElsewhere from error


class Share(Protocol):
    """One process's share of the images, among `world` processes that all run the same code."""

    rank: int
    world: int

    def sum(self, value: Tensor) -> Tensor:
        """The sum over all processes, the same to the bit on each."""

    def broadcast(self, value: Any) -> Any:
        """The first process's value, on each."""


class Alone:
    """The only process: it holds all images."""

    rank, world = 0, 1

    def sum(self, value: Tensor) -> Tensor:
        return value

    def broadcast(self, value: Any) -> Any:
        return value

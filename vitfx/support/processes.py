"""Several processes on one discovery, training or recovery: `torchrun` starts them, each holds a share of the images.

Every process runs the same code on the same sums, to the bit, so that all take the same decisions. Only the first
writes and prints. torchrun ends the others as soon as one ends with an exit code other than 0.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import timedelta
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from vitfx.support.devices import GPU, is_gpu, pick_device
from vitfx.support.errors import UserError

_TIMEOUT = timedelta(minutes=30)
"""How long a process waits for the others until it gives up."""

_PATIENCE = timedelta(days=1)
"""The same while the first works for all: decoding a large data set can take hours."""

_SPEAKING = 10.0
"""Seconds that a process gives another to print what is wrong: torchrun ends all as soon as one has ended."""

T = TypeVar("T")


class ToldElsewhere(UserError):
    """Another process prints what is wrong; this one only ends."""


class OwnFailure(UserError):
    """Only this process, which need not be the first, can't go on: it has to say so itself."""


class Distributed:
    """One of torchrun's processes."""

    def __init__(self, device: torch.device) -> None:
        """device: where values are exchanged; NCCL takes nothing but the GPU."""
        self.rank, self.world = dist.get_rank(), dist.get_world_size()
        self._device = device if is_gpu(device) else torch.device("cpu")
        patient = dist.new_group(timeout=_PATIENCE)
        assert isinstance(patient, dist.ProcessGroup)
        self._patient = patient
        # NCCL connects at the first exchange, which has to come within the shorter time.
        self.broadcast(None)

    def sum(self, value: Tensor) -> Tensor:
        """Gathered, then added in the order of the processes: the same to the bit on each, whatever the backend.

        value: has the same shape and type on every process.
        """
        own = value.detach().to(self._device).contiguous()
        parts = [torch.empty_like(own) for _ in range(self.world)]
        dist.all_gather(parts, own)
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total.to(value.device)

    def average_(self, tensors: Sequence[Tensor]) -> None:
        # In one message; `sum` would hold all processes' gradients at once.
        flat = torch.cat([tensor.detach().flatten() for tensor in tensors]).to(self._device)
        dist.all_reduce(flat)
        for tensor, mean in zip(tensors, flat.div_(self.world).split([len(t.flatten()) for t in tensors]), strict=True):
            tensor.copy_(mean.view_as(tensor))

    def broadcast(self, value: Any) -> Any:
        holder = [value]
        dist.broadcast_object_list(holder, src=0, group=self._patient, device=self._device)
        return holder[0]


def is_first_process() -> bool:
    """By torchrun's number, which also tells processes apart before they know of each other."""
    return os.environ.get("RANK", "0") == "0"


def started_by_torchrun() -> bool:
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def share_device(name: str) -> torch.device:
    """`pick_device`, but under torchrun the GPU with this process's number. Raises UserError."""
    device = pick_device(name)
    if not started_by_torchrun() or not is_gpu(device) or int(os.environ["WORLD_SIZE"]) == 1:
        return device
    if name not in ("auto", GPU):
        raise UserError(f"`device` {name} puts all processes on one GPU: leave out the number")
    number, count = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    if number >= count:
        raise OwnFailure(
            f"process {os.environ['RANK']} is number {number + 1} on a machine with {count} GPUs: start at most "
            f"{count} there, with --nproc-per-node={count}, or add `device` cpu"
        )
    return pick_device(f"{GPU}:{number}")


@contextmanager
def open_share(device: torch.device) -> Iterator[Share]:
    """This process's share among those that torchrun started; everything for a command that was started alone.

    NCCL on GPUs, gloo on CPUs. After an error it does not wait for the other processes.
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
    """Runs a function on the first process and returns its value on all.

    Raises what the function raises on the first process, and ToldElsewhere on the others.
    """
    value: T | None = None
    error: Exception | None = None
    if share.rank == 0:
        try:
            value = function()
        except Exception as raised:
            # The others would wait for the value, and then fail with a traceback of their own.
            error = raised
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
    """Runs a function, which itself exchanges nothing, on each process.

    Where some fail, the one with the lowest number raises its UserError, as an OwnFailure if it is not the first, and
    all others raise ToldElsewhere.
    """
    error = None
    try:
        value = function()
    except UserError as raised:
        error = raised
    failed = torch.zeros(share.world)
    failed[share.rank] = error is not None
    failing = share.sum(failed).nonzero().flatten().tolist()
    if failing:
        if error is None or failing[0] != share.rank:
            raise ToldElsewhere
        raise error if share.rank == 0 else OwnFailure(f"process {share.rank}: {error}") from error
    return value


def let_speak() -> None:
    """To be called before a process ends on ToldElsewhere: torchrun would end the one that has yet to print."""
    if started_by_torchrun():
        time.sleep(_SPEAKING)


@contextmanager
def first_says(first: bool) -> Iterator[None]:
    """Turns a UserError within, which all processes raise, into ToldElsewhere on all but the first."""
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

    def average_(self, tensors: Sequence[Tensor]) -> None:
        """Replaces tensors of one type, which have the same shapes on every process, by their means."""

    def broadcast(self, value: Any) -> Any:
        """The first process's value, on each."""


class Alone:
    """The only process: it holds all images."""

    rank, world = 0, 1

    def sum(self, value: Tensor) -> Tensor:
        return value

    def average_(self, tensors: Sequence[Tensor]) -> None:
        pass

    def broadcast(self, value: Any) -> Any:
        return value

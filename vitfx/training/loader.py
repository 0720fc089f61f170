"""Which images a step sees, independent of restarts, and the batches themselves."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.transforms import v2

from vitfx.images.pixel_cache import Pixels
from vitfx.support.devices import is_gpu
from vitfx.support.errors import UserError
from vitfx.support.machine import usable_cores
from vitfx.support.seeds import derive_seed
from vitfx.training.augment import transform_each

_MOST_WORKERS = 8


@dataclass(frozen=True)
class BatchPlan:
    """The order of the images in every epoch, for one of several processes; an incomplete last batch is dropped.

    Raises UserError where the images do not fill a batch, or the processes can't share it equally.
    """

    count: int  #: images
    batch: int  #: images a step over all processes, of which this one takes every `world`-th
    epochs: int
    seed: int
    rank: int = 0
    world: int = 1

    def __post_init__(self) -> None:
        if self.count < self.batch:
            raise UserError(f"`batch` is {self.batch}, but there are {self.count} images: give a smaller one")
        if self.batch % self.world:
            raise UserError(
                f"`batch` is {self.batch}, which {self.world} processes can't share equally: give a multiple"
            )

    @property
    def epoch_steps(self) -> int:
        return self.count // self.batch

    @property
    def steps(self) -> int:
        return self.epochs * self.epoch_steps

    def batches(self, start: int) -> Iterator[tuple[int, Tensor]]:
        """From step `start` to the end: the epoch, counted from 0, and the indices of this process's images."""
        for epoch in range(start // self.epoch_steps, self.epochs):
            generator = torch.Generator().manual_seed(derive_seed(self.seed, "order", epoch))
            order = torch.randperm(self.count, generator=generator)
            first = start - epoch * self.epoch_steps if epoch == start // self.epoch_steps else 0
            for step in range(first, self.epoch_steps):
                yield epoch, order[step * self.batch : (step + 1) * self.batch][self.rank :: self.world]


class _Order(Sampler[tuple[int, Tensor]]):
    def __init__(self, plan: BatchPlan, start: int) -> None:
        self._plan, self._start = plan, start

    def __iter__(self) -> Iterator[tuple[int, Tensor]]:
        return self._plan.batches(self._start)


class _Augmented(Dataset[tuple[Tensor, Tensor]]):
    """Whole batches, by epoch and indices; an image's augmentation depends only on seed, epoch and index."""

    def __init__(self, pixels: Pixels, transform: v2.Transform, seed: int) -> None:
        self._pixels, self._transform, self._seed = pixels, transform, seed

    def __getitem__(self, item: tuple[int, Tensor]) -> tuple[Tensor, Tensor]:
        epoch, indices = item
        seeds = [derive_seed(self._seed, "image", epoch, index) for index in indices.tolist()]
        images = transform_each(self._transform, self._pixels.rows(indices), seeds)
        return images, self._pixels.labels[indices]


def default_workers(device: torch.device) -> int:
    """Processes that augment; none on a CPU, where they would compete with the training for cores."""
    return min(usable_cores() - 1, _MOST_WORKERS) if is_gpu(device) else 0


def pick_workers(asked: int | None, device: torch.device) -> int:
    """The value of --workers, or the default for None. Raises UserError."""
    if asked is None:
        return default_workers(device)
    if asked < 0:
        raise UserError(f"`workers` {asked} is negative: give a number of processes, 0 for none")
    return asked


def load_batches(
    pixels: Pixels, transform: v2.Transform, plan: BatchPlan, start: int, workers: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """From step `start` on: uint8 (B, C, H, W) and labels (B,), on the CPU."""
    # One loader for the whole run, so that epochs begin without a pause.
    loader: DataLoader[tuple[Tensor, Tensor]] = DataLoader(
        _Augmented(pixels, transform, plan.seed),
        sampler=_Order(plan, start),
        batch_size=None,
        num_workers=workers,
        pin_memory=is_gpu(device),
        worker_init_fn=_leave_ctrl_c if workers else None,
        generator=torch.Generator(),
        prefetch_factor=4 if workers else None,
    )
    return iter(loader)


def _leave_ctrl_c(worker: int) -> None:
    """Only the training process reacts to Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

"""A training's log for TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from vitfx.support.errors import UserError
from vitfx.training.state import Epoch


class Board(Protocol):
    def step(self, step: int, loss: float, lr: float) -> None: ...

    def epoch(self, step: int, epoch: Epoch, layers: Sequence[str]) -> None:
        """step: the epoch's last, counted from 0, so that a run that goes on after it keeps the entry."""

    def flush(self) -> None:
        """To be called before a state is saved: a run that goes on from it does not log these entries again."""

    def close(self) -> None: ...


class NoBoard:
    """Logs nothing."""

    def step(self, step: int, loss: float, lr: float) -> None:
        pass

    def epoch(self, step: int, epoch: Epoch, layers: Sequence[str]) -> None:
        pass

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass


class TensorBoard:
    """Event files in a folder."""

    def __init__(self, folder: Path, start: int) -> None:
        """start: this run's first step; what an earlier run logged from there on is removed."""
        self._writer = _writer_class()(str(folder), purge_step=start)

    def step(self, step: int, loss: float, lr: float) -> None:
        self._writer.add_scalar("train/loss", loss, step)
        self._writer.add_scalar("train/learning rate", lr, step)

    def epoch(self, step: int, epoch: Epoch, layers: Sequence[str]) -> None:
        self._writer.add_scalar("validation/loss", epoch.loss, step)
        self._writer.add_scalar("validation/top-1", epoch.accuracy, step)
        self._writer.add_scalar("train/images per second", epoch.images_per_second, step)
        for layer, mean in zip(layers, epoch.flow.get("mean", ()), strict=False):
            self._writer.add_scalar(f"gradient flow/{layer}", mean, step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


def check_tensorboard() -> None:
    """Raises UserError where the package is missing."""
    _writer_class()


def _writer_class() -> type:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UserError("`tensorboard` needs a package: pip install 'vitfx[tensorboard]', or leave it out") from error
    return SummaryWriter

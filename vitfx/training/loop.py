"""The course of a training: steps, the evaluation after each epoch, saved states, Ctrl-C."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vitfx.support.devices import is_gpu
from vitfx.support.errors import UserError
from vitfx.support.interrupts import Interrupts
from vitfx.support.processes import Share
from vitfx.support.progress import Watcher
from vitfx.support.text import time_left
from vitfx.training.board import Board
from vitfx.training.confusion import Confusion
from vitfx.training.loader import BatchPlan
from vitfx.training.optimizer import learning_rate
from vitfx.training.state import Epoch, Log
from vitfx.training.trainer import Trainer

_GPU_STEPS = 10
"""Steps between two fetches of a GPU's losses: it waits for each fetch."""


@dataclass(eq=False)
class Loop:
    """A training from where its log ends."""

    trainer: Trainer
    plan: BatchPlan
    log: Log
    share: Share
    watcher: Watcher
    board: Board
    interrupts: Interrupts
    #: On the validation images; its argument is called with (images done, images in all) and returns whether to go on.
    evaluate: Callable[[Callable[[int, int], bool]], Confusion | None]
    save: Callable[[], None]  #: writes the state; called on the first process
    epoch_ended: Callable[[], None]  #: writes the files of an epoch; called on the first process
    save_seconds: float
    _pending: list[tuple[Tensor, float]] = field(default_factory=list)
    _began: float = 0.0
    _counted: float = 0.0
    _saved: float = 0.0
    _start: int = 0

    def run(self, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
        """Takes the remaining steps, with these batches.

        Raises KeyboardInterrupt after Ctrl-C, with the state saved, and UserError where the loss is not finite.
        """
        self._began = self._counted = self._saved = time.monotonic()
        self._start = step = len(self.log.losses)
        report = self.watcher.bar("training steps")
        epoch_began, epoch_start = self._began, step
        while True:
            if step and step % self.plan.epoch_steps == 0 and len(self.log.epochs) < step // self.plan.epoch_steps:
                seconds = time.monotonic() - epoch_began
                self._end_epoch(step, (step - epoch_start) * self.plan.batch / seconds if step > epoch_start else 0.0)
                epoch_began, epoch_start = time.monotonic(), step
            if step == self.plan.steps:
                return
            lr = learning_rate(self.trainer.optimizer)
            self._pending.append((self.trainer.step(step, *next(batches)), lr))
            step += 1
            every = _GPU_STEPS if is_gpu(self.trainer.device) else 1
            if len(self._pending) >= every or step % self.plan.epoch_steps == 0:
                self._fetch(step)
                rate = (step - epoch_start) * self.plan.batch / (time.monotonic() - epoch_began)
                self.watcher.detail(
                    f"epoch {(step - 1) // self.plan.epoch_steps + 1} of {self.plan.epochs}, "
                    f"loss {self.log.losses[-1]:.3f}, {rate:.0f} images/s"
                )
            report(step, self.plan.steps)

    def _fetch(self, step: int) -> None:
        """Logs losses, as means over the processes, which also agree here whether to stop."""
        asked = torch.tensor([float(self.interrupts.asked)], device=self.trainer.device)
        pending, rates = zip(*self._pending, strict=True)
        total = self.share.sum(torch.cat([torch.stack(pending), asked])).tolist()
        losses = [value / self.share.world for value in total[:-1]]
        for back, loss, lr in zip(range(len(losses), 0, -1), losses, rates, strict=True):
            if not math.isfinite(loss):
                raise UserError(
                    f"the loss is {loss} at step {step - back + 1}: "
                    f"give a learning rate below {self.trainer.config.lr:g} with `lr`"
                )
            self.board.step(step - back, loss, lr)
        self.log.losses += losses
        self._pending.clear()
        if total[-1]:
            self._save()
            raise KeyboardInterrupt
        if time.monotonic() - self._saved >= self.save_seconds:
            self._save()

    def _end_epoch(self, step: int, images_per_second: float) -> None:
        report = self.watcher.bar("evaluating")

        def goes_on(done: int, total: int) -> bool:
            report(done, total)
            # Several processes would not stop at the same image: they all stop at the next step.
            return self.share.world > 1 or not self.interrupts.asked

        validation = self.evaluate(goes_on)
        if validation is None:
            self._save()
            raise KeyboardInterrupt
        number = step // self.plan.epoch_steps
        recent = self.log.losses[-self.plan.epoch_steps :]
        epoch = Epoch(
            number=number,
            train_loss=sum(recent) / len(recent),
            loss=validation.loss,
            accuracy=validation.accuracy,
            lr=learning_rate(self.trainer.optimizer),
            images_per_second=images_per_second,
            flow=self.trainer.flow.take(),
        )
        self.log.epochs.append(epoch)
        self.board.epoch(step - 1, epoch, self.trainer.flow.layers)
        if self.share.rank == 0:
            self.epoch_ended()
        self._save()
        self.watcher.say(
            f"epoch {number} of {self.plan.epochs}: training loss {epoch.train_loss:.3f}, validation loss "
            f"{epoch.loss:.3f}, top-1 {epoch.accuracy:.2%}, {images_per_second:.0f} images/s{self._left(step)}"
        )

    def _left(self, step: int) -> str:
        """The time left, by this run's mean time per step, evaluations included."""
        if step in (self._start, self.plan.steps):
            return ""
        return time_left((time.monotonic() - self._began) / (step - self._start) * (self.plan.steps - step))

    def _save(self) -> None:
        now = time.monotonic()
        self.log.seconds += now - self._counted
        self._counted = now
        if self.share.rank == 0:
            self.board.flush()
            self.save()
        self._saved = time.monotonic()

"""The course of a retraining: steps by number or by the clock, checks on held-out images, states to resume from."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.optim import AdamW

from vitfx.graph.divergence import Divergence
from vitfx.recovery.checks import Check, best_of, held_out_logits, is_stale, scores
from vitfx.recovery.data import Batch, RecoverData
from vitfx.recovery.distill import unexplained
from vitfx.recovery.flow_log import FlowLog
from vitfx.recovery.settings import RecoverSettings, rate_factor
from vitfx.recovery.teacher import TappedModel, Teacher, like_merged
from vitfx.support.devices import synchronize
from vitfx.support.errors import UserError
from vitfx.support.interrupts import Interrupts
from vitfx.support.processes import Share
from vitfx.support.progress import Watcher
from vitfx.support.text import time_left
from vitfx.training.optimizer import learning_rate
from vitfx.training.precision import autocast, make_scaler
from vitfx.training.state import Log, to_cpu

_CHECKING = 0.07
"""Share of a time budget that checks on held-out images may take."""
_FEWEST_CHECKS = 2
_FIRST_STEPS = 20
"""The learning rate rises over at least so many steps."""


@dataclass(eq=False)
class Course:
    """One retraining, with its state."""

    student: GraphModule
    tapped: TappedModel | None  #: the student with its streams, where hidden states are taught
    teacher: Teacher
    trained: dict[str, nn.Parameter]  #: the parameters that change, by name
    data: RecoverData
    wanted: Tensor  #: the teacher's held-out answers
    measure: Divergence  #: of their kind
    settings: RecoverSettings
    batch: int  #: images a step, over all processes
    steps: int | None  #: None where settings.minutes says how long
    device: torch.device
    precision: str
    share: Share
    watcher: Watcher
    save_seconds: float  #: between saved states
    store: Callable[[Course], None] | None  #: writes the state
    losses: list[float] = field(default_factory=list)  #: of all steps; this and what follows is the state
    checks: list[Check] = field(default_factory=list)
    best: dict[str, Tensor] = field(default_factory=dict)  #: the best check's weights
    wanted_checks: int = 0  #: how many there are to be
    spent: float = 0.0  #: seconds of earlier runs
    flow: FlowLog = field(init=False)  #: of the gradients
    optimizer: AdamW = field(init=False)
    scaler: torch.amp.GradScaler = field(init=False)
    stopped: bool = False
    _began: float | None = None
    _saved: float = 0.0
    _reserve: float = 0.0

    def __post_init__(self) -> None:
        # No weight decay: in so little time it would only work against the loss.
        self.optimizer = AdamW(self.trained.values(), lr=self.settings.rate, weight_decay=0.0, fused=True)
        self.scaler = make_scaler(self.device, self.precision)
        self.flow = FlowLog(self.student)

    def run(self, batches: Iterator[Batch], interrupts: Interrupts) -> None:
        """Trains to the end, then puts the best weights into the student. batches: from where the state is.

        Raises KeyboardInterrupt after Ctrl-C, with the state saved, and UserError where the loss is not finite.
        """
        self._began = self._saved = time.monotonic()
        if not self.checks:
            self._first_check()
            if self.rate < self.settings.rate:
                self.watcher.say(f"so near to the teacher, the learning rate rises to no more than {self.rate:.1e}")
        bar = self.watcher.bar("retraining")
        while True:
            # Before the step, so that a resumed run checks where an uninterrupted one does.
            if self._stepped and self._due(self._progress()) > self._due(self.checks[-1].progress):
                self._check()
            if self.stopped or self._progress() >= 1:
                break
            self._step(next(batches))
            self._show(bar)
            if self.share.sum(torch.tensor(float(interrupts.asked))):
                self._save()
                raise KeyboardInterrupt
            if time.monotonic() - self._saved >= self.save_seconds:
                self._save()
        self._save()
        with torch.no_grad():
            for name, value in self.best.items():
                self.trained[name].copy_(value)

    @property
    def rate(self) -> float:
        """The highest learning rate; the first check has been made."""
        return self.settings.rate_at(self.checks[0].kl)

    @property
    def seconds(self) -> float:
        """Of this run and the earlier ones that it resumes."""
        return self.spent + (0.0 if self._began is None else time.monotonic() - self._began)

    def _progress(self) -> float:
        if self.steps is not None:
            return len(self.losses) / self.steps
        # The last check is part of the budget.
        assert self.settings.minutes is not None
        # By the first process's clock, so all processes have to be here.
        seconds = self.share.broadcast(self.seconds)
        return float(min(seconds / max(60 * self.settings.minutes - self._reserve, 1e-9), 1.0))

    @property
    def _stepped(self) -> bool:
        """Whether there was a step since the last check: by the clock, set-up alone may take until the next is due."""
        return len(self.losses) * self.batch > self.checks[-1].images

    def _due(self, progress: float) -> int:
        # The summand makes up for rounding in products that are whole numbers.
        return int(progress * self.wanted_checks + 1e-9)

    def _step(self, batch: Batch) -> None:
        # By the clock the first 5 % may be only a few steps, too few for AdamW to learn how large gradients are.
        begun = min((len(self.losses) + 1) / _FIRST_STEPS, 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate * min(rate_factor(self._progress()), begun)
        self.student.train()
        loss = self._loss(batch)
        self.scaler.scale(loss).backward()
        self.share.average_([value.grad for value in self.trained.values() if value.grad is not None])
        self.scaler.unscale_(self.optimizer)
        self.flow.follow(self.checks[-1].images, len(self.losses) * self.batch)
        if self.settings.clip:
            nn.utils.clip_grad_norm_(self.trained.values(), self.settings.clip)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        value = float(self.share.sum(loss.detach())) / self.share.world
        if not math.isfinite(value):
            raise UserError(
                f"the loss is {value} at step {len(self.losses) + 1}: "
                f"give a learning rate below {self.rate:g} with `lr`"
            )
        self.losses.append(value)

    def _loss(self, batch: Batch) -> Tensor:
        images, labels = batch.images.to(self.device), batch.labels.to(self.device)
        if self.tapped is not None:
            taught, theirs = self.teacher.streams(batch.images)
            with autocast(self.device, self.precision):
                logits, ours, groups = self.tapped(images)
            near = self.settings.objective(logits, labels, taught, self.measure)
            return near + self.settings.objective.hidden * unexplained(ours, like_merged(theirs, ours, groups))
        answers = self.teacher.logits(batch.images, batch.places) if self.settings.objective.needs_teacher else None
        with autocast(self.device, self.precision):
            logits = self.student(images)
        return self.settings.objective(logits, labels, answers, self.measure)

    def _first_check(self) -> None:
        """Also sets how many checks the time allows."""
        began = time.monotonic()
        self._check()
        self._reserve = self.share.broadcast(time.monotonic() - began)
        self.wanted_checks = self.settings.checks
        if self.settings.minutes is not None and self.steps is None:
            if self._progress() >= 0.5:
                raise UserError(
                    f"preparing took {self.seconds:.0f} s, {self._reserve:.0f} of them to evaluate "
                    f"{len(self.data.held_out):,} held-out images, which leaves too little of `minutes` "
                    f"{self.settings.minutes:g}: give more minutes, or fewer images with `held_out`"
                )
            affordable = int(_CHECKING * 60 * self.settings.minutes / max(self._reserve, 1e-9))
            self.wanted_checks = max(min(affordable, self.settings.checks), _FEWEST_CHECKS)

    def _check(self) -> None:
        self.student.eval()
        synchronize(self.device)
        logits = held_out_logits(self.student, self.data, self.device, self.precision, share=self.share)
        seen = sum(last.images for last in self.checks[-1:]) // self.batch
        recent = self.losses[seen:]
        check = Check(
            progress=self._progress() if self.checks else 0.0,
            images=len(self.losses) * self.batch,
            seconds=self.seconds,
            lr=learning_rate(self.optimizer),
            train_loss=sum(recent) / len(recent) if recent else None,
            task=self.measure.kind,
            **scores(logits, self.wanted, self.data, self.measure),  # type: ignore[arg-type]
        )
        self.checks.append(check)
        best = best_of(self.checks, self.settings.objective.label_share)
        if self.checks[best] is check:
            self.best = {name: value.detach().clone() for name, value in self.trained.items()}
        self.stopped = is_stale(self.checks, self.settings.patience)
        title = "before" if len(self.checks) == 1 else f"{check.progress:.0%}, {check.images:,} images"
        self.watcher.say(f"{title}: {check}{', stopping early' if self.stopped else ''}{self._left()}")
        if len(self.checks) > 1:
            self._save()

    def _left(self) -> str:
        progress = self._progress()
        if not 0 < progress < 1 or self.stopped:
            return ""
        return time_left(self.seconds * (1 - progress) / progress)

    def _show(self, bar: Any) -> None:
        if self.steps is not None:
            bar(len(self.losses), self.steps)
        else:
            assert self.settings.minutes is not None
            bar(int(self.seconds), math.ceil(60 * self.settings.minutes))
        rate = len(self.losses) * self.batch / max(self.seconds, 1e-9)
        self.watcher.detail(f"loss {self.losses[-1]:.3f}, {rate:.0f} images/s")

    def _save(self) -> None:
        if self.store is not None:
            self.store(self)
        self._saved = time.monotonic()

    def state_dict(self) -> dict[str, Any]:
        answers = self.teacher.answers
        state: dict[str, Any] = to_cpu(
            {
                "model": dict(self.trained),
                "optimizer": self.optimizer.state_dict(),
                "scaler": self.scaler.state_dict(),
                "best": self.best,
                "checks": [check.to_json() for check in self.checks],
                "wanted_checks": self.wanted_checks,
                "reserve": self._reserve,
                "flow": self.flow.rows,
                "stopped": self.stopped,
                "precision": self.precision,
                "known": None if answers is None else answers.known,
            }
        )
        return state

    def load_state_dict(self, log: Log, state: dict[str, Any]) -> None:
        self.losses, self.spent = log.losses, log.seconds
        with torch.no_grad():
            for name, value in state["model"].items():
                self.trained[name].copy_(value)
        self.optimizer.load_state_dict(state["optimizer"])
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
        self.best = {name: value.to(self.device) for name, value in state["best"].items()}
        self.checks = [Check(**check) for check in state["checks"]]
        self.wanted_checks, self._reserve = state["wanted_checks"], state["reserve"]
        self.stopped = state["stopped"]
        # States of earlier versions lack it.
        self.flow.rows = state.get("flow", [])

"""Retrains a pruned model to win back what deletion cost, and keeps the best weights, never worse than before."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule

from vitfx.graph.divergence import CLASSES, Divergence
from vitfx.models.weights import fingerprint
from vitfx.recovery.allowed import answer_shape, check_loss, check_processes, pick_augment
from vitfx.recovery.checks import Check, best_of, held_out_logits
from vitfx.recovery.course import Course
from vitfx.recovery.data import VARIANTS, RecoverData, load
from vitfx.recovery.distill import Objective
from vitfx.recovery.settings import RecoverSettings
from vitfx.recovery.teacher import Answers, TappedModel, Teacher, fits, frozen, shared_sublayers
from vitfx.recovery.trainable import merge_adapters, prepare
from vitfx.support.errors import UserError
from vitfx.support.files import writing
from vitfx.support.interrupts import held_interrupts
from vitfx.support.processes import Alone, Share, on_each, on_first
from vitfx.support.progress import Watcher
from vitfx.training.precision import pick_precision
from vitfx.training.state import Log, read_state, write_state

_FOREVER = 10**6
"""Epochs of a run that ends by the clock."""


@dataclass(frozen=True)
class Recovered:
    """A retrained model, and how it went."""

    module: GraphModule  #: with the best check's weights, on the CPU, in eval mode, of the given student's structure
    checks: tuple[Check, ...]  #: the first one before any step
    best: int  #: position of the check that is kept
    losses: tuple[float, ...]  #: of each step
    steps: int
    seconds: float
    trained: int  #: how many numbers were trained
    rate: float  #: the highest learning rate
    precision: str
    augment: str
    notes: tuple[str, ...]  #: for the user
    flow: Mapping[str, Any]  #: see `FlowLog.to_json`

    def to_json(self) -> dict[str, Any]:
        return {
            "checks": [check.to_json() for check in self.checks],
            "best": self.best,
            "steps": self.steps,
            "seconds": self.seconds,
            "trained_parameters": self.trained,
            "highest_rate": self.rate,
            "precision": self.precision,
            "augment": self.augment,
            "told": list(self.notes),
            "gradient_flow": dict(self.flow),
        }


@dataclass(frozen=True)
class Store:
    """Where a run saves its state, to resume from."""

    path: Path
    seconds: float = 120.0  #: between saves
    force: bool = False  #: ignore a state that is already there

    @property
    def answers(self) -> Path:
        return self.path.with_suffix(".answers")

    def discard(self) -> None:
        for path in (self.path, self.answers):
            path.unlink(missing_ok=True)


def recover(
    student: GraphModule,
    teacher: GraphModule,
    data: RecoverData,
    settings: RecoverSettings,
    *,
    device: torch.device,
    watcher: Watcher,
    share: Share | None = None,
    store: Store | None = None,
    steps: int | None = None,
    measure: Divergence = CLASSES,
) -> Recovered:
    """Retrains a copy of the student; both canonical graphs stay as they are.

    The weights of the best check on held-out images are kept; the state before any step counts as one: see `best_of`.
    share: of each batch, and of the held-out images, where several processes do this together; what a stream misses
    counts relative to its spread over each part. steps: how many, whatever epochs or minutes say. measure: of the
    models' kind of answers. Raises UserError where the settings do not fit the models or the data, and
    KeyboardInterrupt after Ctrl-C, with the state stored.
    """
    share = share or Alone()
    settings = _with_streams(settings, student, teacher)
    objective = settings.objective
    check_loss(settings, measure.kind, labelled=data.labelled)
    began = time.monotonic()
    key = _key(student, teacher, data, settings, steps, measure)
    _check_same(key, share)
    state = None if store is None else on_first(share, partial(read_state, store.path, key, force=store.force))
    log, parts = state or (Log(), None)
    student = copy.deepcopy(student).to(device)
    original = frozen(copy.deepcopy(teacher).to(device))
    shape = answer_shape(student, original, data, measure)
    precision, why = on_first(share, partial(_precision, student, data, settings, parts))
    wanted = held_out_logits(original, data, device, precision, share=share)
    augment, notes = pick_augment(original, data, settings, wanted, precision, measure, share)
    trained = prepare(student, original, settings.only, settings.rank, settings.seed)
    for sentence in (why, *notes, _what_is_trained(student, trained, settings, data), *_unkept(objective, share)):
        watcher.say(sentence)
    taps = _taps(student, original, objective)
    answers = _answers(data, augment, objective, math.prod(shape), store, parts) if share.world == 1 else None
    batch = _batch(settings.batch, len(data.train), share.world)
    course = Course(
        student=student, tapped=taps[0],
        teacher=Teacher(original, taps[1], answers, device, precision, shape),
        trained={name: value for name, value in student.named_parameters() if value.requires_grad},
        data=data, wanted=wanted, measure=measure, settings=settings, batch=batch,
        steps=_steps(data, settings, batch, steps), device=device, precision=precision, share=share, watcher=watcher,
        store=None if store is None or share.rank else partial(_write, store.path, key),
        save_seconds=store.seconds if store else math.inf, spent=time.monotonic() - began,
    )  # fmt: skip
    if parts is not None:
        watcher.say(f"resuming after step {len(log.losses)}")
        course.load_state_dict(log, parts)
    _run(course, augment, settings.seed)
    merge_adapters(student)
    return _recovered(course, student, trained, augment, notes)


def _what_is_trained(student: GraphModule, trained: int, settings: RecoverSettings, data: RecoverData) -> str:
    whole = sum(parameter.numel() for parameter in student.parameters())
    return f"{trained:,} of {whole:,} numbers are trained (only: {settings.only}), on {len(data.train):,} images"


def _unkept(objective: Objective, share: Share) -> tuple[str, ...]:
    if share.world == 1 or objective.hidden or not objective.needs_teacher:
        return ()
    return ("the teacher answers anew at every step: from epoch to epoch an image goes to another process",)


def _check_same(key: str, share: Share) -> None:
    """Raises UserError where processes, on several machines, have different models or images."""
    firsts = share.broadcast(key)

    def check() -> None:
        if key != firsts:
            raise UserError("models, images or settings are not those of the first process: give all machines the same")

    on_each(share, check)


def _run(course: Course, augment: str, seed: int) -> None:
    start = len(course.losses)
    per_epoch = len(course.data.train) // course.batch
    epochs = _FOREVER if course.steps is None else -(-course.steps // per_epoch)
    with held_interrupts() as interrupts:
        batches = load(course.data, augment, course.batch, epochs, seed, start, course.device, course.share)
        course.run(batches, interrupts)


def _recovered(course: Course, student: GraphModule, trained: int, augment: str, notes: list[str]) -> Recovered:
    for parameter in student.parameters():
        parameter.requires_grad_(True)
    return Recovered(
        module=student.cpu().eval(),
        checks=tuple(course.checks),
        best=best_of(course.checks, course.settings.objective.label_share),
        losses=tuple(course.losses),
        steps=len(course.losses),
        seconds=course.checks[-1].seconds,
        trained=trained,
        rate=course.rate,
        precision=course.precision,
        augment=augment,
        notes=tuple(notes),
        flow=course.flow.to_json(),
    )


def _write(path: Path, key: str, course: Course) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_state(path, key, Log(course.losses, [], course.seconds), course.state_dict())


def _batch(asked: int, images: int, processes: int) -> int:
    """Images a step. Raises UserError where the processes can't share them equally."""
    check_processes(asked, processes)
    if images < processes:
        raise UserError(f"{images} images are too few for {processes} processes: start fewer")
    return min(asked, images - images % processes)


def _steps(data: RecoverData, settings: RecoverSettings, batch: int, steps: int | None) -> int | None:
    if steps is not None or settings.epochs is None:
        return steps
    return max(1, round(settings.epochs * (len(data.train) // batch)))


def _with_streams(settings: RecoverSettings, student: GraphModule, teacher: GraphModule) -> RecoverSettings:
    """Leaves the streams' part out of the loss where there are none. Raises UserError where it was asked for."""
    if shared_sublayers(student, teacher) or not settings.objective.hidden:
        return settings
    if settings.hidden is not None:
        raise UserError("the pruned model shares no sublayer with the teacher: leave out `hidden`")
    return replace(settings, hidden=0.0)


def _taps(
    student: GraphModule, teacher: GraphModule, objective: Objective
) -> tuple[TappedModel | None, TappedModel | None]:
    if not objective.hidden:
        return None, None
    names = shared_sublayers(student, teacher)
    return TappedModel(student, names), TappedModel(teacher, names)


def _answers(
    data: RecoverData, augment: str, objective: Objective, numbers: int, store: Store | None,
    parts: Mapping[str, Any] | None,
) -> Answers | None:  # fmt: skip
    variants = VARIANTS.get(augment)
    if not objective.needs_teacher or objective.hidden or not fits(len(data.train), variants, numbers):
        return None
    assert variants is not None
    path = None
    if store is not None:
        path = store.answers
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
    return Answers(variants * len(data.train), numbers, path, None if parts is None else parts["known"])


def _precision(
    student: GraphModule, data: RecoverData, settings: RecoverSettings, parts: Mapping[str, Any] | None
) -> tuple[str, str]:
    if parts is not None:
        return parts["precision"], f"precision: {parts['precision']}, as before"
    count = min(settings.batch, 8, len(data.train))
    images = data.preprocess.normalise(data.train.rows(torch.arange(count)))
    return pick_precision(settings.precision, student, images.to(next(student.parameters()).device))


def _key(
    student: GraphModule,
    teacher: GraphModule,
    data: RecoverData,
    settings: RecoverSettings,
    steps: int | None,
    measure: Divergence,
) -> str:
    """Of everything that the weights depend on."""
    record = {
        "kept": "the look that misses least",
        "settings": settings.to_json(),
        "steps": steps,
        "models": [fingerprint(student.state_dict()), fingerprint(teacher.state_dict())],
        "data": [data.fingerprint, len(data.held_out), data.preprocess.to_json()],
        **({} if measure == CLASSES else {"answers": repr(measure)}),
    }
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()

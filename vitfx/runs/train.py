"""One run of `vitfx.train`: data, model, loop, files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial

import torch

from vitfx.images.image_set import ImageSet
from vitfx.images.pixel_cache import open_pixels
from vitfx.images.preprocess import Preprocess
from vitfx.images.splits import open_data
from vitfx.models.weights import fingerprint
from vitfx.runs.train_files import BOARD, Files
from vitfx.runs.train_job import Data, TrainJob
from vitfx.runs.train_record import TrainReport, training_report
from vitfx.support.devices import words_for
from vitfx.support.errors import UserError
from vitfx.support.interrupts import held_interrupts
from vitfx.support.pictures import has_matplotlib
from vitfx.support.processes import Share, first_says, on_each, on_first
from vitfx.support.progress import Watcher
from vitfx.support.seeds import derive_seed, seed_generators
from vitfx.training.augment import sample_transform
from vitfx.training.board import Board, NoBoard, TensorBoard, check_tensorboard
from vitfx.training.confusion import Confusion, confuse
from vitfx.training.loader import BatchPlan, load_batches
from vitfx.training.loop import Loop
from vitfx.training.model import TrainModel, model_from, new_model
from vitfx.training.precision import pick_precision
from vitfx.training.state import STATE, Log, read_state
from vitfx.training.trainer import Trainer, make_trainer


def run_training(job: TrainJob, share: Share, watcher: Watcher) -> TrainReport:
    """Trains, evaluates and writes; the report. Goes on where a run with the same settings stopped.

    Raises UserError, and KeyboardInterrupt after Ctrl-C.
    """
    if job.tensorboard:
        check_tensorboard()
    made, data = prepare(job, share, watcher)
    key = _key(job, made, data)
    state = on_first(share, lambda: read_state(job.out / STATE, key, force=job.force))
    log, parts = state or (Log(), None)
    made.module.to(job.device)
    if parts is None:
        precision, why = on_first(share, partial(_precision, job, made, data))
    else:
        precision, why = parts["precision"], f"going on after step {len(log.losses)}, in {parts['precision']}"
    watcher.say(f"device: {words_for(job.device)}")
    watcher.say(why)
    with first_says(share.rank == 0):
        plan = make_plan(job, data, share)
    trainer = make_trainer(
        made.module, job.config, made.preprocess, len(data.classes), plan.epoch_steps,
        precision=precision, share=share, device=job.device,
    )  # fmt: skip
    files = Files(job, made, data, trainer, log, key, plan.epoch_steps)
    if parts is not None:
        trainer.load_state_dict(parts)
    elif share.rank == 0:
        files.begin()
    if share.rank == 0 and not has_matplotlib():
        watcher.say("curves are not drawn because matplotlib is missing: pip install 'vitfx[plot]'")
    _run_loop(job, share, watcher, trainer, plan, log, data, made.preprocess, files)
    return _finish(job, share, watcher, files, why)


def prepare(job: TrainJob, share: Share, watcher: Watcher) -> tuple[TrainModel, Data]:
    """The model, the same in all processes, and the images, decoded by the first."""

    def make() -> tuple[TrainModel, ImageSet, ImageSet, tuple[str, ...], str]:
        splits = open_data(job.data, job.config.preprocess)
        if splits.classes is None or len(splits.classes) < 2:
            raise UserError(f"{job.data} has no classes: give labelled images of two classes or more")
        if isinstance((splits.calibration.labels or (0,))[0], tuple):
            raise UserError(f"{job.data} has several labels an image, and training is for one class each: give classes")
        seed_generators(derive_seed(job.config.training.seed, "weights"), job.device)
        if job.init is None:
            made = new_model(job.config.model, job.config.preprocess, len(splits.classes))
        else:
            made = model_from(job.init, job.arch, job.config.model, splits.classes, job.image_size, job.weights)
            splits = open_data(job.data, made.preprocess)
        _plan_size(job, len(splits.calibration), share.world)
        return made, splits.calibration, splits.evaluation, splits.classes or (), splits.description

    made, train, validation, classes, description = on_each(share, make)
    for sentence in (description, *made.notes):
        watcher.say(sentence)
    stored = made.preprocess.size
    if shorter := job.config.images.stored_size:
        stored = (stored[0] * shorter // min(stored), stored[1] * shorter // min(stored))
    pixels = [
        on_first(share, partial(open_pixels, images, size, job.cache, progress=watcher.bar(title)))
        for images, size, title in (
            (train, stored, "decoding training images"),
            (validation, made.preprocess.size, "decoding validation images"),
        )
    ]
    for part in pixels:
        if part.skipped:
            watcher.say(f"{part.skipped} corrupt images are left out")
    return made, Data(pixels[0], pixels[1], tuple(classes), description)


def _plan_size(job: TrainJob, count: int, world: int) -> None:
    BatchPlan(count, job.config.training.batch, job.config.training.epochs, 0, 0, world)


def make_plan(job: TrainJob, data: Data, share: Share) -> BatchPlan:
    """Which images each step of this process sees."""
    training = job.config.training
    return BatchPlan(len(data.train), training.batch, training.epochs, training.seed, share.rank, share.world)


def _key(job: TrainJob, made: TrainModel, data: Data) -> str:
    """Everything that the weights depend on: a state with the same key belongs to this run."""
    record = {
        "config": job.config.to_json(),
        "model": [made.factory, made.kwargs, made.preprocess.to_json()],
        "weights": fingerprint(made.module.state_dict()),
        "data": [data.train.fingerprint, data.validation.fingerprint, data.train.shape, data.classes],
    }
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _precision(job: TrainJob, made: TrainModel, data: Data) -> tuple[str, str]:
    count = min(job.config.training.batch, 16, len(data.validation))
    images = made.preprocess.normalise(data.validation.rows(torch.arange(count))).to(job.device)
    return pick_precision(job.config.training.precision, made.module, images)


def _run_loop(
    job: TrainJob, share: Share, watcher: Watcher, trainer: Trainer, plan: BatchPlan, log: Log, data: Data,
    preprocess: Preprocess, files: Files,
) -> None:  # fmt: skip
    def evaluate(goes_on: Callable[[int, int], bool]) -> Confusion | None:
        return confuse(
            trainer.evaluated, data.validation, preprocess, len(data.classes),
            batch=job.config.training.batch, precision=trainer.precision, share=share, goes_on=goes_on,
        )  # fmt: skip

    start = len(log.losses)
    board: Board = TensorBoard(job.out / BOARD, start) if job.tensorboard and share.rank == 0 else NoBoard()
    transform = sample_transform(job.config.augmentation, preprocess)
    batches = load_batches(data.train, transform, plan, start, job.workers, job.device)
    with held_interrupts() as interrupts:
        loop = Loop(
            trainer, plan, log, share, watcher, board, interrupts, evaluate, files.save_state, files.end_epoch,
            job.save_seconds,
        )  # fmt: skip
        try:
            with first_says(share.rank == 0):
                loop.run(batches)
        finally:
            board.close()


def _finish(job: TrainJob, share: Share, watcher: Watcher, files: Files, why: str) -> TrainReport:
    """Evaluates the last weights, in full precision, on all validation images, and writes the results."""
    bar = watcher.bar("evaluating")
    last = confuse(
        files.trainer.evaluated, files.data.validation, files.made.preprocess, len(files.data.classes),
        batch=job.config.training.batch, precision="fp32", share=share,
        goes_on=lambda done, total: bar(done, total) is None,
    )  # fmt: skip
    assert last is not None
    report = training_report(job, files.made, files.data, files.trainer, files.log, last, why, share.world)
    if share.rank == 0:
        files.finish(last, report)
    return report

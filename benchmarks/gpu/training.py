"""Step 7: steps of training and of recovery a second, in float32 and with AMP: fp16 with its scaler, and bf16."""

from __future__ import annotations

import copy
import math
import time
from functools import partial
from statistics import median

import torch

from benchmarks.gpu.context import Context, Figures
from benchmarks.gpu.models import SMALL, small_vit
from benchmarks.gpu.plans import HEADS, plan_for
from vitfx.graph.verify import rewrite
from vitfx.images.preprocess import Preprocess
from vitfx.recovery.data import PixelSubset, RecoverData
from vitfx.recovery.retrain import recover
from vitfx.recovery.settings import RecoverSettings
from vitfx.support.devices import synchronize
from vitfx.support.processes import Alone
from vitfx.support.progress import Report, Silent
from vitfx.training.config import read_config
from vitfx.training.trainer import make_trainer

_PRECISIONS = ("bf16", "fp16", "fp32")
_WARM_UPS = 3
_SHARE = 0.3


def run(context: Context, figures: Figures) -> None:
    rows = figures["rows"] = []
    for precision in _PRECISIONS:
        context.attempt(rows, {"what": "training", "precision": precision}, partial(_train, context, precision))
    for precision in _PRECISIONS[:2]:
        context.attempt(rows, {"what": "recovery", "precision": precision}, partial(_recover, context, precision))


def _train(context: Context, precision: str, row: Figures) -> None:
    """By the recipe that is the package's, from random weights, on random images that lie in memory."""
    sizes, shape = context.sizes, context.sizes.small
    changes = {"model.image_size": shape.image, "training.batch": sizes.training_batch, "training.epochs": 10}
    config = read_config("tiny-imagenet", changes=changes)
    torch.manual_seed(context.seed)
    trainer = make_trainer(
        small_vit(shape).to(context.device),
        config,
        config.preprocess,
        shape.classes,
        sizes.training_steps,
        precision=precision,
        share=Alone(),
        device=context.device,
    )
    images, labels = _images(sizes.training_batch, shape.image, shape.classes, context.seed)
    losses, began = [], 0.0
    for number in range(_WARM_UPS + sizes.training_steps):
        if number == _WARM_UPS:
            synchronize(context.device)
            began = time.perf_counter()
        losses.append(trainer.step(number, images, labels))
    synchronize(context.device)
    seconds = time.perf_counter() - began
    row |= {"batch": sizes.training_batch, "steps": sizes.training_steps, "seconds": seconds}
    row["steps_a_second"] = sizes.training_steps / seconds
    row |= {"losses": [float(loss) for loss in losses], "loss_scale": trainer.scaler.get_scale()}
    if not all(map(math.isfinite, row["losses"])):
        raise ArithmeticError(f"a loss of training in {precision} is not finite")


def _images(count: int, size: int, classes: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
    return images, torch.randint(0, classes, (count,), generator=generator)


class _Clock(Silent):
    """Notes when each step of a retraining was done."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def bar(self, title: str) -> Report:
        if title != "retraining":
            return super().bar(title)
        return lambda done, total: self.times.append(time.perf_counter())


def _recover(context: Context, precision: str, row: Figures) -> None:
    """Images are loaded and prepared as ever, which is part of what is timed."""
    sizes, subject, clock = context.sizes, context.subject(SMALL), _Clock()
    student = rewrite(subject.graph_module, plan_for(subject.graph_module, HEADS, _SHARE, context.seed)).graph_module
    steps, batch = _WARM_UPS + sizes.training_steps, max(2, sizes.training_batch // 2)
    settings = RecoverSettings(
        epochs=1, augment="none", batch=batch, checks=1, precision=precision, seed=context.seed, patience=steps
    )
    recovered = recover(
        student,
        copy.deepcopy(subject.graph_module),
        _recover_data(context, 4 * batch, batch),
        settings,
        device=context.device,
        watcher=clock,
        steps=steps,
    )
    each = [
        after - before for before, after in zip(clock.times[_WARM_UPS:], clock.times[_WARM_UPS + 1 :], strict=False)
    ]
    row |= {"batch": batch, "steps": recovered.steps, "seconds": recovered.seconds, "steps_a_second": 1 / median(each)}
    row |= {"losses": list(recovered.losses), "held_out": [check.to_json() for check in recovered.checks]}


def _recover_data(context: Context, train: int, held_out: int) -> RecoverData:
    size = context.sizes.small.image
    images, labels = _images(train + held_out, size, context.sizes.small.classes, context.seed)
    order, shape = torch.arange(len(images)), (len(images), 3, size, size)
    parts = [
        PixelSubset(shape, labels[chosen], 0, f"random {context.seed}", images, None, chosen)
        for chosen in (order[held_out:], order[:held_out])
    ]
    return RecoverData(parts[0], parts[1], True, Preprocess((size, size)))


def lines(figures: Figures) -> list[str]:
    return [f"{row['what']} {row['precision']}: {_result(row)}" for row in figures.get("rows", [])]


def _result(row: Figures) -> str:
    if "steps_a_second" not in row:
        return str(row.get("error", "not finished"))
    losses = row["losses"]
    rate = f"{row['steps_a_second']:.2f} steps of {row['batch']} images a second"
    return f"{rate}, loss {losses[0]:.2f} to {losses[-1]:.2f}"

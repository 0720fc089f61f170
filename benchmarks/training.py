"""`python -m benchmarks.training`: a whole training step against the model's own forward and backward, in turns."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.command import check_least, check_out, make_parser, run_command
from vitfx.images.pixel_cache import default_cache
from vitfx.runs.train import make_plan, prepare
from vitfx.runs.train_job import TrainJob
from vitfx.support.console import entry_point
from vitfx.support.devices import NAMES, pick_device, synchronize
from vitfx.support.json_files import write_json
from vitfx.support.machine import environment, load_average
from vitfx.support.processes import Alone
from vitfx.support.progress import Watcher
from vitfx.support.timing import Timing, ratio, time_interleaved
from vitfx.training.augment import sample_transform
from vitfx.training.config import read_config
from vitfx.training.loader import load_batches, pick_workers
from vitfx.training.precision import autocast, pick_precision
from vitfx.training.trainer import Trainer, make_trainer

FORMAT = "vitfx-training-benchmark/1"
EXAMPLE = """example:
  python -m benchmarks.training --data tiny-imagenet-200/ --out speed.json

A whole step reads, augments, mixes, runs forward and backward, clips, and updates the weights and their average; the
model alone runs forward and backward on one prepared batch, in the same precision. Workers prefetch while the model
alone runs, so with workers --steps should be many times what they hold (4 batches each)."""


@dataclass(frozen=True)
class TrainingOptions:
    """What `benchmarks.training` is asked for. Raises UserError."""

    job: TrainJob
    rounds: int
    steps: int  #: whole steps in a round, and as many of the model alone
    out: Path | None


def measure(options: TrainingOptions, watcher: Watcher) -> dict[str, Any]:
    """Images a second of both, and of reading and augmenting alone, ready for JSON. Raises UserError."""
    job, share = options.job, Alone()
    made, data = prepare(job, share, watcher)
    plan = make_plan(job, data, share)
    transform = sample_transform(job.config.augmentation, made.preprocess)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        # A data set may hold fewer batches than are timed.
        while True:
            yield from load_batches(data.train, transform, plan, 0, job.workers, job.device)

    images, labels = next(batches())
    made.module.to(job.device)
    ready = made.preprocess.normalise(images).to(job.device), labels.to(job.device)
    precision, why = pick_precision(job.config.training.precision, made.module, ready[0][:16])
    watcher.say(why)
    trainer = make_trainer(
        made.module, job.config, made.preprocess, len(data.classes), plan.epoch_steps,
        precision=precision, share=share, device=job.device,
    )  # fmt: skip
    runs: dict[str, Callable[[], None]] = {
        "step": partial(_whole_steps, trainer, batches(), options.steps),
        "model": partial(_model_alone, trainer, *ready, options.steps),
        "input": partial(_input_alone, batches(), options.steps),
    }
    times = time_interleaved(
        runs,
        warmup=1,
        rounds=options.rounds,
        synchronize=partial(synchronize, job.device),
        progress=watcher.bar("timing"),
    )
    return _record(options, times, precision)


def _record(options: TrainingOptions, times: dict[str, Timing], precision: str) -> dict[str, Any]:
    job = options.job
    images = options.steps * job.config.training.batch
    share = ratio(times["model"], times["step"])
    return {
        "images_per_second": {name: 1e3 * images / timing.median_ms for name, timing in times.items()},
        "share_of_the_models_speed": share.paired,
        "share_of_medians": share.of_medians,
        "times": {name: timing.to_json() for name, timing in times.items()},
        "precision": precision,
        "steps": options.steps,
        "workers": job.workers,
        "device": str(job.device),
        "settings": job.config.to_json(),
        "load_average": load_average(),
        "environment": environment(),
    }


def _whole_steps(trainer: Trainer, batches: Iterator[tuple[Tensor, Tensor]], steps: int) -> None:
    for number in range(steps):
        # .item() because the training loop logs each loss.
        trainer.step(number + 1, *next(batches)).item()


def _model_alone(trainer: Trainer, images: Tensor, labels: Tensor, steps: int) -> None:
    for _ in range(steps):
        with autocast(trainer.device, trainer.precision):
            loss = cross_entropy(trainer.model(images).float(), labels)
        loss.backward()
        trainer.optimizer.zero_grad(set_to_none=True)


def _input_alone(batches: Iterator[tuple[Tensor, Tensor]], steps: int) -> None:
    for _ in range(steps):
        next(batches)


@entry_point
def main(arguments: Sequence[str] | None = None) -> int:
    return run_command(lambda: _options(build_parser().parse_args(arguments)), _work)


def _work(options: TrainingOptions, watcher: Watcher) -> list[str]:
    record = measure(options, watcher)
    if options.out is not None:
        write_json(options.out, FORMAT, record)
    speeds = ", ".join(f"{name} {value:.1f}" for name, value in record["images_per_second"].items())
    share = record["share_of_the_models_speed"]
    return [f"images a second: {speeds}; a whole step runs at {share:.1%} of the model's own speed"]


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("training", (__doc__ or "").partition(": ")[2], EXAMPLE)
    add = parser.add_argument
    add("--data", required=True, help="as for vitfx.train")
    add("--config", default="tiny-imagenet", help="as for vitfx.train (default: %(default)s)")
    add("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="as for vitfx.train")
    add("--rounds", type=int, default=5, help="rounds of each, in turns (default: %(default)s)")
    add("--steps", type=int, default=2, help="steps in a round (default: %(default)s)")
    add("--workers", type=int, help="processes that augment (default: as for vitfx.train)")
    add("--cache", type=Path, help="folder for decoded images (default: as for vitfx.train)")
    add("--device", default="auto", help=f"{NAMES} (default: %(default)s)")
    add("--out", type=Path, help="JSON file for the figures")
    return parser


def _options(parsed: argparse.Namespace) -> TrainingOptions:
    check_least(1, steps=parsed.steps, rounds=parsed.rounds)
    check_out("out", parsed.out)
    device: torch.device = pick_device(parsed.device)
    job = TrainJob(
        config=read_config(parsed.config, parsed.set),
        data=parsed.data,
        out=Path(),
        model_file=None,
        cache=parsed.cache or default_cache(),
        device=device,
        workers=pick_workers(parsed.workers, device),
        save_seconds=0.0,
        init=None,
        arch=None,
        weights=None,
        image_size=None,
        tensorboard=False,
        force=False,
        command="",
    )
    return TrainingOptions(job, parsed.rounds, parsed.steps, parsed.out)


if __name__ == "__main__":
    sys.exit(main())

"""`python -m benchmarks.training`: a whole training step against the model's own forward and backward, in turns."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks.opening import check_out
from vitfx.cli.exit_codes import ending
from vitfx.images.pixel_cache import default_cache
from vitfx.runs.train import make_plan, prepare
from vitfx.runs.train_job import TrainJob
from vitfx.support.console import HelpFormatter, entry_point
from vitfx.support.devices import NAMES, pick_device, synchronize
from vitfx.support.errors import UserError
from vitfx.support.files import write_aside
from vitfx.support.machine import environment, load_average
from vitfx.support.processes import Alone
from vitfx.support.progress import Watcher, console_watcher
from vitfx.support.timing import Timing, ratio, time_interleaved
from vitfx.training.augment import sample_transform
from vitfx.training.config import read_config
from vitfx.training.loader import load_batches, pick_workers
from vitfx.training.precision import autocast, pick_precision
from vitfx.training.trainer import Trainer, make_trainer

EXAMPLE = """example:
  python -m benchmarks.training --data tiny-imagenet-200/ --out speed.json

A whole step reads, augments, mixes, goes forward and backward, clips, and updates weights and average; the model alone
goes forward and backward on one batch that is ready, in the same precision. Workers prefetch while the model alone
runs: with any, --steps should be many times what they hold (4 batches each)."""


@dataclass(frozen=True)
class Setting:
    """What is timed: rounds of `steps` whole steps, and of as many of the model alone."""

    job: TrainJob
    rounds: int
    steps: int


def measure(setting: Setting, watcher: Watcher) -> dict[str, Any]:
    """Images a second of both and of reading and augmenting alone, ready for JSON; raises UserError."""
    job, share = setting.job, Alone()
    made, data = prepare(job, share, watcher)
    plan = make_plan(job, data, share)
    transform = sample_transform(job.config.augmentation, made.preprocess)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        # A dataset may hold fewer batches than are timed.
        while True:
            yield from load_batches(data.train, transform, plan, 0, job.workers, job.device)

    images, labels = next(batches())
    made.module.to(job.device)
    ready = made.preprocess(images).to(job.device), labels.to(job.device)
    precision, why = pick_precision(job.config.training.precision, made.module, ready[0][:16], len(data.classes))
    watcher.say(why)
    trainer = make_trainer(
        made.module, job.config, made.preprocess, len(data.classes), plan.epoch_steps,
        precision=precision, share=share, device=job.device,
    )  # fmt: skip
    runs: dict[str, Callable[[], None]] = {
        "step": partial(_whole_steps, trainer, batches(), setting.steps),
        "model": partial(_model_alone, trainer, *ready, setting.steps),
        "input": partial(_input_alone, batches(), setting.steps),
    }
    times = time_interleaved(
        runs,
        warmup=1,
        rounds=setting.rounds,
        synchronize=partial(synchronize, job.device),
        progress=watcher.bar("timing"),
    )
    return _record(setting, times, precision)


def _record(setting: Setting, times: dict[str, Timing], precision: str) -> dict[str, Any]:
    job = setting.job
    images = setting.steps * job.config.training.batch
    found = ratio(times["model"], times["step"])
    return {
        "images_per_second": {name: 1e3 * images / timing.median_ms for name, timing in times.items()},
        "share_of_the_models_speed": found.paired,
        "share_of_medians": found.of_medians,
        "times": {name: timing.to_json() for name, timing in times.items()},
        "precision": precision,
        "steps": setting.steps,
        "workers": job.workers,
        "device": str(job.device),
        "settings": job.config.to_json(),
        "load_average": load_average(),
        "environment": environment(),
    }


def _whole_steps(trainer: Trainer, batches: Iterator[tuple[Tensor, Tensor]], steps: int) -> None:
    for number in range(steps):
        # As the loop does, which logs each loss.
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
    console = Console()

    def work() -> None:
        options = _parser().parse_args(arguments)
        with console_watcher(console) as watcher:
            record = measure(_setting(options), watcher)
        if options.out is not None:
            write_aside(options.out, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
        speeds = ", ".join(f"{name} {value:.1f}" for name, value in record["images_per_second"].items())
        share = record["share_of_the_models_speed"]
        console.print(f"images a second: {speeds}; a whole step runs at {share:.1%} of the model's own speed")

    return ending(work)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training",
        description=(__doc__ or "").partition(": ")[2],
        epilog=EXAMPLE,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("--data", required=True, help="as of vitfx.train")
    parser.add_argument("--config", default="tiny-imagenet", help="as of vitfx.train (default tiny-imagenet)")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="as of vitfx.train")
    parser.add_argument("--rounds", type=int, default=5, help="of each, in turns (default 5)")
    parser.add_argument("--steps", type=int, default=2, help="a round (default 2)")
    parser.add_argument("--workers", type=int, help="processes that augment (default: as of vitfx.train)")
    parser.add_argument("--cache", type=Path, help="folder for decoded images (default: as of vitfx.train)")
    parser.add_argument("--device", default="auto", help=NAMES)
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    return parser


def _setting(options: argparse.Namespace) -> Setting:
    for name in ("steps", "rounds"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name} is {getattr(options, name)}: give 1 or more")
    if options.out is not None:
        check_out(options.out)
    device: torch.device = pick_device(options.device)
    job = TrainJob(
        config=read_config(options.config, options.set),
        data=options.data,
        out=Path(),
        model_file=None,
        cache=options.cache or default_cache(),
        device=device,
        workers=pick_workers(options.workers, device),
        save_seconds=0.0,
        init=None,
        arch=None,
        image_size=None,
        tensorboard=False,
        force=False,
        command="",
    )
    return Setting(job, options.rounds, options.steps)


if __name__ == "__main__":
    sys.exit(main())

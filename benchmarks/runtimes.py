"""`python -m benchmarks.runtimes`: how long models take on the runtimes that are here, and what they reach."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress

from benchmarks.contenders import Contender, load_contenders
from benchmarks.evaluation import Evaluations, evaluate_contenders
from benchmarks.measure import LatencyRow, measure_latency, unsteady
from benchmarks.tables import evaluation_table, latency_table
from benchmarks.workloads import RUNTIMES, variants
from vitfx.cli.exit_codes import ending
from vitfx.images.image_set import ImageSet
from vitfx.images.splits import open_data
from vitfx.support.console import HelpFormatter, entry_point
from vitfx.support.devices import NAMES, pick_device
from vitfx.support.errors import UserError
from vitfx.support.files import write_aside
from vitfx.support.machine import environment, load_average, usable_cores

EXAMPLE = """example:
  python -m benchmarks.runtimes vit-pruned/ --batches 1,8,64 --runtimes torch,onnxruntime
  python -m benchmarks.runtimes original.pt pruned.onnx --data digits --out digits.json"""


@dataclass(frozen=True)
class Settings:
    """What was asked for. samples: evaluation images, all when None. threads: torch's own choice when None."""

    models: tuple[str, ...]
    data: str | None
    samples: int | None
    batches: tuple[int, ...]
    rounds: int
    device: str
    threads: int | None
    runtimes: tuple[str, ...]
    out: Path
    seed: int

    def __post_init__(self) -> None:
        counts = {"samples": self.samples, "rounds": self.rounds, "threads": self.threads}
        for name, value in counts.items():
            if value is not None and value < 1:
                raise UserError(f"--{name} is {value}: give 1 or more")
        if not self.batches or min(self.batches) < 1:
            raise UserError(f"--batches is {list(self.batches)}: give sizes of 1 or more, such as 1,8,64")
        if self.out.is_dir() or not os.access(self.out.parent, os.W_OK):
            raise UserError(f"{self.out} cannot be written: give --out a file in a folder that is there")

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"out": str(self.out)}


@entry_point
def main(arguments: Sequence[str] | None = None) -> int:
    return ending(lambda: run(_parse(arguments), Console()))


def run(settings: Settings, console: Console) -> None:
    """Measures, prints the tables and writes the JSON file; raises UserError."""
    device = pick_device(settings.device)
    ways = variants(settings.runtimes, device)
    contenders = load_contenders(settings.models)
    images, description = _evaluation_images(settings, contenders)
    before, load = torch.get_num_threads(), load_average()
    threads = settings.threads or before
    torch.set_num_threads(threads)
    try:
        with Progress(console=Console(stderr=True), transient=True) as progress:
            latency = measure_latency(contenders, ways, images, settings.batches, settings.rounds, threads, progress)
            task = progress.add_task("evaluating", total=len(images))
            evaluations = evaluate_contenders(
                contenders,
                ways,
                images,
                max(settings.batches),
                threads,
                lambda done, total: progress.update(task, completed=done, total=total),
            )
        facts = environment() | {"load_average_before": load}
    finally:
        torch.set_num_threads(before)
    console.print(latency_table(latency, contenders))
    if load is not None and load > usable_cores() / 2:
        console.print(f"{load:.1f} threads were at work before this began: repeat it on an idle machine")
    if count := unsteady(latency):
        console.print(f"{count} of {len(latency)} rows vary twofold: repeat this on an idle machine")
    console.print(evaluation_table(evaluations, description))
    _write(settings, facts, contenders, latency, evaluations, description)
    console.print(f"written to {settings.out}")


def _evaluation_images(settings: Settings, contenders: Sequence[Contender]) -> tuple[ImageSet, str]:
    data = settings.data or next((one.data for one in contenders if one.data), None)
    if data is None:
        raise UserError("the models name no data set: pass --data with a folder of images, an .npz file or digits")
    classes = next((one.classes for one in contenders if one.classes), None)
    preprocess = contenders[0].preprocess
    assert preprocess is not None  # load_contenders gives all of them one.
    splits = open_data(data, preprocess, classes)
    if settings.samples is None:
        return splits.evaluation, splits.name
    return splits.evaluation.sample(settings.samples, settings.seed), splits.name


def _write(
    settings: Settings,
    facts: dict[str, Any],
    contenders: Sequence[Contender],
    latency: Sequence[LatencyRow],
    evaluations: Evaluations,
    data: str,
) -> None:
    record = {
        "settings": settings.to_json(),
        "environment": facts,
        "data": data,
        "models": [{"name": one.name, "source": one.source} for one in contenders],
        "latency": [row.to_json() for row in latency],
        "evaluation": asdict(evaluations),
    }
    write_aside(settings.out, json.dumps(record, indent=2) + "\n")


def _parse(arguments: Sequence[str] | None) -> Settings:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.runtimes",
        description="Compares models on torch, torch.compile and ONNX Runtime: times in turns, medians, ratios to "
        "the first model; then test loss, test accuracy and inference time over the evaluation images.",
        epilog=EXAMPLE,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("models", nargs="+", metavar="MODEL", help="a folder that vitfx.prune wrote, or 2+ models")
    parser.add_argument("--data", help="images to evaluate on (default: what the models name)")
    parser.add_argument("--samples", type=int, help="how many evaluation images (default: all)")
    parser.add_argument("--batches", default="1,8,64", help="batch sizes to time (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=30, help="times each model is timed (default: %(default)s)")
    parser.add_argument("--device", default="auto", help=f"{NAMES} (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    parser.add_argument("--runtimes", default=",".join(RUNTIMES), help="which (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="JSON file (default: runtimes.json in MODEL's folder, or here)")
    parser.add_argument("--seed", type=int, default=0, help="chooses the samples (default: %(default)s)")
    parsed = parser.parse_args(arguments)
    folder = Path(parsed.models[0]) if len(parsed.models) == 1 else Path()
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder that vitfx.prune wrote: give one, or two or more models")
    return Settings(
        models=tuple(parsed.models),
        data=parsed.data,
        samples=parsed.samples,
        batches=_batches(parsed.batches),
        rounds=parsed.rounds,
        device=parsed.device,
        threads=parsed.threads,
        runtimes=tuple(parsed.runtimes.split(",")),
        out=parsed.out or folder / "runtimes.json",
        seed=parsed.seed,
    )


def _batches(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in text.split(","))
    except ValueError as error:
        raise UserError(f"--batches is {text!r}: give sizes such as 1,8,64") from error


if __name__ == "__main__":
    sys.exit(main())

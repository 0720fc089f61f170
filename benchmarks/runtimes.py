"""`python -m benchmarks.runtimes`: how fast and how accurate models are on the runtimes installed here."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch
from rich.console import Console

from benchmarks.command import check_least, check_out, make_parser, read_names
from benchmarks.contenders import Contender, load_contenders
from benchmarks.evaluation import evaluate_contenders
from benchmarks.measure import measure_latency, unsteady
from benchmarks.tables import evaluation_table, latency_table
from benchmarks.workloads import RUNTIMES, variants
from vitfx.cli.exit_codes import ending
from vitfx.deploy.openvino_runtime import is_installed
from vitfx.deploy.precisions import OPENVINO
from vitfx.images.image_set import ImageSet
from vitfx.images.splits import open_data
from vitfx.reports.records import RUNTIMES_RECORD
from vitfx.support.console import entry_point
from vitfx.support.devices import NAMES, pick_device
from vitfx.support.errors import UserError
from vitfx.support.json_files import write_json
from vitfx.support.machine import environment, load_average, usable_cores
from vitfx.support.progress import console_watcher

FORMAT = RUNTIMES_RECORD
EXAMPLE = """example:
  python -m benchmarks.runtimes vit-pruned/ --batches 1,8,64 --runtimes torch,onnxruntime
  python -m benchmarks.runtimes original.pt pruned.onnx --data digits --out digits.json"""


@dataclass(frozen=True)
class RuntimesOptions:
    """What `benchmarks.runtimes` is asked for."""

    models: tuple[str, ...]
    data: str | None
    samples: int | None  #: evaluation images; None for all
    batches: tuple[int, ...]
    rounds: int
    device: str
    threads: int | None  #: None for torch's own choice
    runtimes: tuple[str, ...]
    out: Path
    seed: int

    def __post_init__(self) -> None:
        check_least(1, samples=self.samples, rounds=self.rounds, threads=self.threads)
        if min(self.batches) < 1:
            raise UserError(f"--batches is {list(self.batches)}: give sizes of 1 or more, such as 1,8,64")
        check_out("out", self.out)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"out": str(self.out)}


@entry_point
def main(arguments: Sequence[str] | None = None) -> int:
    return ending(lambda: run(_options(arguments), Console()))


def run(settings: RuntimesOptions, console: Console) -> None:
    """Measures, prints the tables and writes the JSON file. Raises UserError."""
    device = pick_device(settings.device)
    ways = variants(settings.runtimes, device)
    contenders = load_contenders(settings.models)
    images, description = _evaluation_images(settings, contenders)
    before, load = torch.get_num_threads(), load_average()
    threads = settings.threads or before
    torch.set_num_threads(threads)
    try:
        with console_watcher(Console(stderr=True)) as watcher:
            latency = measure_latency(contenders, ways, images, settings.batches, settings.rounds, threads, watcher)
            report = watcher.bar("evaluating")
            evaluations = evaluate_contenders(contenders, ways, images, max(settings.batches), threads, report)
        facts = environment() | {"load_average_before": load}
    finally:
        torch.set_num_threads(before)
    console.print(latency_table(latency, contenders))
    if load is not None and load > usable_cores() / 2:
        console.print(f"{load:.1f} threads were running before this began: repeat it on an idle machine")
    if count := unsteady(latency):
        console.print(f"{count} of {len(latency)} rows vary twofold: repeat this on an idle machine")
    console.print(evaluation_table(evaluations, description))
    record = {
        "settings": settings.to_json(),
        "environment": facts,
        "data": description,
        "models": [{"name": contender.name, "source": contender.source} for contender in contenders],
        "latency": [row.to_json() for row in latency],
        "evaluation": asdict(evaluations),
    }
    write_json(settings.out, FORMAT, record)
    console.print(f"written to {settings.out}")


def _evaluation_images(settings: RuntimesOptions, contenders: Sequence[Contender]) -> tuple[ImageSet, str]:
    data = settings.data or next((contender.data for contender in contenders if contender.data), None)
    if data is None:
        raise UserError("the models name no data set: pass --data with a folder of images, an .npz file or digits")
    classes = next((contender.classes for contender in contenders if contender.classes), None)
    preprocess = contenders[0].preprocess
    assert preprocess is not None  # load_contenders gives all of them one.
    chosen = next((contender.chosen for contender in contenders if contender.chosen), None)
    if chosen is None:
        splits = open_data(data, preprocess, classes, partial(_count_logits, contenders[0]))
    else:
        splits = chosen.only_images(open_data(data, preprocess, chosen.every, lambda: chosen.count))
    if settings.samples is None:
        return splits.evaluation, splits.name
    return splits.evaluation.sample(settings.samples, settings.seed), splits.name


def _count_logits(contender: Contender) -> int:
    shape = onnx.load_model_from_string(contender.onnx).graph.output[0].type.tensor_type.shape
    return int(shape.dim[-1].dim_value)


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "runtimes",
        "Compares models on torch, torch.compile, OpenVINO and ONNX Runtime: times in turns, medians, ratios to the "
        "first model; then test loss, test accuracy and inference time over the evaluation images.",
        EXAMPLE,
    )
    add = parser.add_argument
    add("models", nargs="+", metavar="MODEL", help="a folder that vitfx.prune wrote, or two or more models")
    add("--data", help="images to evaluate on (default: the data set that the models name)")
    add("--samples", type=int, help="evaluation images (default: all)")
    add("--batches", type=_read_batches, default="1,8,64", help="batch sizes to time (default: %(default)s)")
    add("--rounds", type=int, default=30, help="timings of each model (default: %(default)s)")
    add("--device", default="auto", help=f"{NAMES} (default: %(default)s)")
    add("--threads", type=int, help="CPU threads (default: torch's choice)")
    add("--runtimes", type=read_names, default=",".join(_installed()), help="(default: %(default)s)")
    add("--out", type=Path, help="JSON file (default: runtimes.json in MODEL's folder, or here)")
    add("--seed", type=int, default=0, help="of the choice of samples (default: %(default)s)")
    return parser


def _options(arguments: Sequence[str] | None) -> RuntimesOptions:
    parsed = build_parser().parse_args(arguments)
    folder = Path(parsed.models[0]) if len(parsed.models) == 1 else Path()
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder that vitfx.prune wrote: give one, or two or more models")
    parsed.models = tuple(parsed.models)
    parsed.out = parsed.out or folder / "runtimes.json"
    return RuntimesOptions(**vars(parsed))


def _installed() -> list[str]:
    return [name for name in RUNTIMES if name != OPENVINO or is_installed()]


def _read_batches(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(size) for size in text.split(","))
    except ValueError as error:
        raise UserError(f"--batches is {text!r}: give sizes such as 1,8,64") from error


if __name__ == "__main__":
    sys.exit(main())

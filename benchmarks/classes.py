"""`python -m benchmarks.classes`: what is left of a model for 2, 5, 10, … of its classes, over random draws."""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import command
from benchmarks.classes_table import draw, markdown, table
from vitfx.cli.exit_codes import GOES_ON
from vitfx.cli.goal_options import SAMPLES
from vitfx.deploy.deployment import NAMES, default_deployment
from vitfx.images.splits import Splits
from vitfx.models.checkpoint import LoadedModel, load_model
from vitfx.pruning.goal import DROP, Goal, Target, parse_target
from vitfx.pruning.token_merging import AUTO
from vitfx.reports.records import PruneReport
from vitfx.runs.inputs import Inputs, count_logits, open_splits
from vitfx.runs.prune import run_goal
from vitfx.runs.prune_run import GoalRun
from vitfx.support.console import entry_point
from vitfx.support.devices import pick_device
from vitfx.support.errors import UserError
from vitfx.support.json_files import write_json
from vitfx.support.machine import environment, load_average
from vitfx.support.progress import Watcher
from vitfx.support.tables import Table
from vitfx.version import VERSION

FORMAT = "vitfx-classes/1"
EXAMPLE = """example:
  python -m benchmarks.classes vit.pt --data photos/ --markdown classes.md --plot classes.png

Every draw is a run of vitfx.prune --classes --max-drop, without training: it is calibrated on the calibration images of
its classes and evaluated on their evaluation images, and timed in turns with the plain export of the model for the same
classes. Rows that --out already has, made with the same settings on the same machine, are not made again."""


@dataclass(frozen=True, kw_only=True)
class ClassesOptions(command.CommonOptions):
    """What `benchmarks.classes` is asked for; its seed is the first draw's."""

    counts: tuple[int, ...]  #: of classes
    draws: int
    max_drop: float  #: points of top-1
    tokens: str  #: see `vitfx.pruning.token_merging.choose_merging`
    samples: int | None  #: calibration images, at most; None as `vitfx.prune` has it
    target: Target
    markdown: Path | None
    plot: Path | None

    def __post_init__(self) -> None:
        super().__post_init__()
        command.check_least(1, draws=self.draws)
        command.check_least(8, samples=self.samples)
        if min(self.counts) < 2:
            raise UserError(f"--counts is {list(self.counts)}: give numbers of 2 or more, such as 2,10,100")
        Goal(DROP, self.max_drop)
        command.check_pages(self.markdown, self.plot)


@entry_point
def main(arguments: Sequence[str] | None = None) -> int:
    return command.run_command(
        lambda: ClassesOptions(**vars(build_parser().parse_args(arguments))), _work, lambda: GOES_ON
    )


def _work(options: ClassesOptions, watcher: Watcher) -> list[Table]:
    record = measure_draws(options, watcher)
    command.write_pages(options.markdown, options.plot, lambda: markdown(record), lambda: draw(record))
    return [table(record)]


def measure_draws(options: ClassesOptions, watcher: Watcher) -> dict[str, Any]:
    """Makes the rows that --out lacks; the JSON record, which is written after each. Raises UserError."""
    load, model = load_average(), load_model(options.model)
    if (data := options.data or model.data) is None:
        raise UserError(f"{options.model} does not name its data: pass images with --data, a folder, .npz or digits")
    model, splits = open_splits(model, data, partial(count_logits, model))
    every = model.classes or splits.classes
    if every is None or not splits.calibration.has_labels or not splits.evaluation.has_labels:
        raise UserError("classes are drawn by name, and the model's or the images' are not known: give labelled images")
    if max(options.counts) > len(every):
        raise UserError(f"--counts has {max(options.counts)}, and the model {len(every)} classes: give fewer")
    asked = _asked(options, model, splits, data)
    record: dict[str, Any] = {"asked": asked, **command.read_finished(options.out, FORMAT, asked, "rows")}
    for count in options.counts:
        for seed in range(options.seed, options.seed + options.draws):
            if (name := f"{count} {seed}") in record["rows"]:
                watcher.say(f"{count} classes, draw {seed}: {options.out} already has them")
                continue
            watcher.say(f"{count} classes, draw {seed}")
            classes = random.Random(seed).sample(every, count)
            row = {"count": count, "draw": seed, "load_average_before": load}
            record["rows"][name] = {**row, **_measure(options, model, data, classes, seed, watcher)}
            write_json(options.out, FORMAT, record)
    return record


def _asked(options: ClassesOptions, model: LoadedModel, splits: Splits, data: str) -> dict[str, Any]:
    """All that a row depends on besides its classes."""
    return {
        "vitfx": VERSION,
        "model": {"source": options.model, "fingerprint": model.fingerprint},
        "data": data,
        "evaluation_fingerprint": splits.evaluation.fingerprint(),
        "max_drop": options.max_drop,
        "tokens": options.tokens,
        "samples": options.samples,
        "target": options.target.to_json(),
        "environment": environment(),
    }


def _measure(
    options: ClassesOptions, model: LoadedModel, data: str, classes: Sequence[str], seed: int, watcher: Watcher
) -> dict[str, Any]:
    """The row of one draw, ready for JSON."""
    asked = None if len(classes) == len(model.classes or ()) else list(classes)
    chosen, splits = open_splits(model, data, partial(count_logits, model), asked=asked)
    available = max(2, len(splits.calibration))
    with tempfile.TemporaryDirectory() as folder:
        run = GoalRun(
            inputs=Inputs(chosen, splits, data, None),
            evaluation=splits.evaluation,
            device=pick_device(options.device),
            out=Path(folder) / "run",
            force=False,
            deployment=default_deployment(NAMES, pick_device(options.target.device), portable=False),
            tokens=options.tokens,
            target=options.target,
            samples=min(options.samples or SAMPLES, available),
            seed=seed,
            goal=Goal(DROP, options.max_drop),
            further=options.samples is None,
        )
        start = time.perf_counter()
        report = run_goal(run, watcher).report
    return {"classes": list(classes), **_row(report), "seconds": time.perf_counter() - start}


def _row(report: PruneReport) -> dict[str, Any]:
    before, after = report["baseline"], report["pruned"]
    assert before["accuracy"] is not None and after["accuracy"] is not None
    return {
        "flops": after["flops"] / before["flops"],
        "parameters": after["params"] / before["params"],
        "whole": before["accuracy"],
        "accuracy": after["accuracy"],
        "kl": report["kl"],
        "speedup": report["speedup"],
        "speedup_by_batch": dict(report["speedup_by_batch"]),
        "images": dict(report["images"]),
        "tokens": report["settings"].get("tokens"),
    }


def build_parser() -> argparse.ArgumentParser:
    parser = command.make_parser(
        "classes", "Prunes a model for some of its classes, many times, and measures what is left and lost.", EXAMPLE
    )
    command.add_common(parser, "classes.json", "the first draw, of its classes, samples and scoring")
    add = parser.add_argument
    add("--counts", type=_read_counts, default="2,5,10,20,50,100,200", metavar="N,N",
        help="of classes (default: %(default)s)")  # fmt: skip
    add("--draws", type=int, default=3, help="of each count (default: %(default)s)")
    add("--max-drop", type=float, default=0.5, metavar="POINTS", help="of top-1, at most (default: %(default)s)")
    add("--tokens", default=AUTO, metavar="SCHEDULE", help="as in vitfx.prune: auto, off, r=4 (default: %(default)s)")
    add("--samples", type=int, help="calibration images at most (default: as vitfx.prune has it)")
    add("--target", type=parse_target, default=str(Target()), metavar="DEVICE:batch=N",
        help="where and at which batch size times are measured (default: %(default)s)")  # fmt: skip
    add("--markdown", type=Path, help="also write the table as Markdown")
    add("--plot", type=Path, help="also draw FLOPs, speed and loss against the number of classes, as PNG")
    return parser


def _read_counts(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted({int(count) for count in text.split(",")}))
    except ValueError as error:
        raise UserError(f"--counts is {text!r}: give numbers such as 2,10,100") from error


if __name__ == "__main__":
    sys.exit(main())

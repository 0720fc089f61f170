"""`python -m benchmarks.methods`: methods of discovery at equal shares of FLOPs deleted, without any training."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.comparison import Comparison
from benchmarks.methods_table import markdown, table
from benchmarks.opening import Subject, check_out, open_subject
from benchmarks.results import read_known, write_record
from benchmarks.thresholds import Run
from vitfx.circuits.circuit import GRANULARITIES
from vitfx.cli.exit_codes import GOES_ON, ending
from vitfx.discovery.basis.settings import METHODS, METRICS, Settings
from vitfx.images.image_set import ImageSet
from vitfx.support.devices import NAMES, pick_device
from vitfx.support.errors import UserError
from vitfx.support.files import write_aside
from vitfx.support.machine import environment, load_average
from vitfx.support.progress import Watcher, console_watcher

EXAMPLE = """example:
  python -m benchmarks.methods vit.pt --data tiny-imagenet-200/ --flops 0.1,0.2,0.3,0.4 --out methods.json

What a method removes is really deleted, and the smaller model is evaluated: D_KL(whole ‖ smaller), agreement and top-1
accuracy. Ranking methods score once, and the least important for their FLOPs go; acdc and eap-acdc are run at the τ
that deletes the share, which is searched for, and then trimmed to it. A method that is in --out already, found with the
same settings on the same machine, is not run again, and a search that was stopped goes on after its last whole run."""


@dataclass(frozen=True)
class Options:
    """shares: of the FLOPs, 0 to 1. evaluation: images."""

    model: str
    data: str | None
    settings: Settings
    shares: tuple[float, ...]
    methods: tuple[str, ...]
    evaluation: int
    device: str
    out: Path
    markdown: Path | None

    def __post_init__(self) -> None:
        if not self.shares or not all(0 < share < 1 for share in self.shares):
            raise UserError(f"--flops is {list(self.shares)}: give shares between 0 and 1, such as 0.1,0.2")
        if unknown := [one for one in self.methods if one not in METHODS]:
            raise UserError(f"--methods {unknown[0]} is not known: choose of {', '.join(METHODS)}")
        if self.evaluation < 1:
            raise UserError(f"--eval-samples is {self.evaluation}: give 1 or more")
        check_out(self.out)
        if self.markdown is not None:
            check_out(self.markdown, "markdown")


def main(arguments: Sequence[str] | None = None) -> int:
    console = Console()

    def work() -> None:
        options = _options(_parser().parse_args(arguments))
        with console_watcher(console) as watcher:
            record = compare(options, watcher)
        if options.markdown is not None:
            write_aside(options.markdown, markdown(record))
        console.print(table(record))
        console.print(f"written to {options.out}", highlight=False, markup=False, soft_wrap=True)

    return ending(work, lambda: GOES_ON)


def compare(options: Options, watcher: Watcher) -> dict[str, Any]:
    """Runs the methods that are not in --out yet, which is written after each, and after each run of a search for τ;
    the JSON record. Raises UserError."""
    device = pick_device(options.device)
    load = load_average()
    begin = time.perf_counter()
    subject = open_subject(options.model, options.data, options.settings, device, watcher)
    preparation = time.perf_counter() - begin
    evaluation = subject.splits.evaluation.sample(
        min(options.evaluation, len(subject.splits.evaluation)), options.settings.seed
    )
    asked = _asked(options, subject, evaluation)
    record: dict[str, Any] = {"asked": asked, **read_known(options.out, asked, "methods", "searches")}
    # A method that is in --out already was found in another call.
    call = {"load_average_before": load, "preparation_seconds": preparation}
    bench = Comparison(subject, options.settings, options.shares, evaluation, watcher)
    for method in options.methods:
        if method in record["methods"]:
            watcher.say(f"{method} is in {options.out} already")
            continue
        watcher.say(f"{method} …")
        record["methods"][method] = {**call, **_measured(bench, method, record, options.out)}
        record["searches"].pop(method, None)
        write_record(options.out, record)
    record["methods"] = {name: record["methods"][name] for name in (*options.methods, *record["methods"])}
    return record


def _measured(bench: Comparison, method: str, record: dict[str, Any], out: Path) -> dict[str, Any]:
    """Goes on with the method's search where the record has one, which is written after each run of it."""
    known = [Run.from_json(one, bench.subject.graph) for one in record["searches"].get(method, [])]
    if known:
        bench.watcher.say(f"{method} goes on after {len(known)} runs, which are in {out} already")

    def remember(found: Sequence[Run]) -> None:
        record["searches"][method] = [one.to_json() for one in found]
        write_record(out, record)

    return bench.measure(method, known, remember)


def _asked(options: Options, subject: Subject, evaluation: ImageSet) -> dict[str, Any]:
    """All that the numbers depend on."""
    settings = options.settings.to_json()
    for name in ("method", "tau", "max_kl", "remove", "order"):
        del settings[name]
    return {
        "model": {"source": options.model, "fingerprint": subject.model.fingerprint},
        "data": {"name": subject.splits.name, "evaluation": evaluation.fingerprint(), **subject.facts},
        "settings": settings,
        "flops": list(options.shares),
        "evaluation_images": len(evaluation),
        "environment": environment() | {"device": str(subject.setup.calibration.clean.device)},
    }


def _options(parsed: argparse.Namespace) -> Options:
    try:
        shares = tuple(float(share) for share in parsed.flops.split(","))
    except ValueError as error:
        raise UserError(f"--flops is {parsed.flops!r}: give shares such as 0.1,0.2,0.3,0.4") from error
    settings = Settings(
        granularity=parsed.granularity,
        metric=parsed.metric,
        samples=parsed.samples,
        paths=parsed.paths,
        seed=parsed.seed,
    )
    return Options(
        model=parsed.model,
        data=parsed.data,
        settings=settings,
        shares=shares,
        methods=tuple(dict.fromkeys(parsed.methods.split(","))),
        evaluation=parsed.eval_samples,
        device=parsed.device,
        out=parsed.out,
        markdown=parsed.markdown,
    )


def _parser() -> argparse.ArgumentParser:
    default = Settings()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.methods",
        description="Deletes equal shares of a model's FLOPs by each method (no training) and evaluates what is left.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", nargs="?", default="demo", help="model file (default: demo)")
    add("--data", help="images (default: what the model names)")
    add("--flops", default="0.1,0.2,0.3,0.4", help="shares to delete (default: %(default)s)")
    add("--methods", default="random,magnitude,taylor,eap,eap-ig,acdc,eap-acdc", help="(default: %(default)s)")
    add("--granularity", choices=GRANULARITIES, default=default.granularity, help="(default: %(default)s)")
    add("--metric", choices=METRICS, default=default.metric, help="of eap and eap-ig (default: %(default)s)")
    add("--samples", type=int, default=default.samples, help="calibration images (default: %(default)s)")
    add("--paths", type=int, default=default.paths, help="groups of hidden neurons an MLP (default: %(default)s)")
    add("--eval-samples", type=int, default=2000, help="evaluation images, or all there are (default: %(default)s)")
    add("--device", default="auto", help=f"{NAMES} (default: %(default)s)")
    add("--seed", type=int, default=0, help="of samples, draws and random scores (default: %(default)s)")
    add("--out", type=Path, default=Path("methods.json"), help="JSON file (default: %(default)s)")
    add("--markdown", type=Path, help="also write the table as Markdown")
    return parser


if __name__ == "__main__":
    sys.exit(main())

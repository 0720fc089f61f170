"""`python -m benchmarks.methods`: methods of discovery at equal shares of FLOPs deleted, without any training."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import command
from benchmarks.comparison import Comparison
from benchmarks.methods_table import markdown, table
from benchmarks.subject import Subject, open_subject
from benchmarks.thresholds import ThresholdRun
from vitfx.circuits.circuit import GRANULARITIES
from vitfx.cli.exit_codes import GOES_ON
from vitfx.discovery.basis.settings import MEASURING, METRICS, RANKING, Settings
from vitfx.images.image_set import ImageSet
from vitfx.support.console import entry_point
from vitfx.support.devices import pick_device
from vitfx.support.files import write_aside
from vitfx.support.json_files import write_json
from vitfx.support.machine import environment, load_average
from vitfx.support.progress import Watcher
from vitfx.support.tables import Table

FORMAT = "vitfx-methods/1"
EXAMPLE = """example:
  python -m benchmarks.methods vit.pt --data photos/ --flops 0.1,0.2,0.3,0.4 --out methods.json

Whatever a method removes is really deleted, and the smaller model is evaluated: D_KL(whole ‖ smaller), agreement and
top-1 accuracy. Ranking methods score once and delete the least important units until the FLOPs are gone; acdc and
eap-acdc are run at the τ that deletes the share, which is searched for, and then trimmed to it. A method that --out
already has, with the same settings on the same machine, is not run again, and an interrupted search resumes after its
last finished run."""


@dataclass(frozen=True, kw_only=True)
class MethodsOptions(command.CommonOptions):
    """What `benchmarks.methods` is asked for."""

    shares: tuple[float, ...]  #: of the FLOPs, 0 to 1
    methods: tuple[str, ...]
    granularity: str
    metric: str
    samples: int  #: calibration images
    paths: int
    eval_samples: int  #: evaluation images
    markdown: Path | None

    def __post_init__(self) -> None:
        super().__post_init__()
        command.check_names("methods", self.methods, (*MEASURING, *RANKING))
        command.check_least(1, eval_samples=self.eval_samples)
        command.check_out("markdown", self.markdown)

    @property
    def settings(self) -> Settings:
        """Raises UserError."""
        return Settings(
            granularity=self.granularity,
            metric=self.metric,
            samples=self.samples,
            paths=self.paths,
            seed=self.seed,
        )


@entry_point
def main(arguments: Sequence[str] | None = None) -> int:
    return command.run_command(
        lambda: MethodsOptions(**vars(build_parser().parse_args(arguments))), _work, lambda: GOES_ON
    )


def _work(options: MethodsOptions, watcher: Watcher) -> list[Table]:
    record = compare(options, watcher)
    if options.markdown is not None:
        write_aside(options.markdown, markdown(record))
    return [table(record)]


def compare(options: MethodsOptions, watcher: Watcher) -> dict[str, Any]:
    """Runs the methods that are not in --out yet; the JSON record, which is written after each method and after each
    run of a search for τ. Raises UserError."""
    load = load_average()
    begin = time.perf_counter()
    settings = options.settings
    subject = open_subject(options.model, options.data, settings, pick_device(options.device), watcher)
    preparation = time.perf_counter() - begin
    evaluation = subject.opened.evaluation(options.eval_samples)
    asked = _asked(options, subject, evaluation)
    record: dict[str, Any] = {
        "asked": asked,
        **command.read_finished(options.out, FORMAT, asked, "methods", "searches"),
    }
    # Methods that are already in --out were run by an earlier call.
    call = {"load_average_before": load, "preparation_seconds": preparation}
    comparison = Comparison(subject, settings, options.shares, evaluation, watcher)
    for method in options.methods:
        if method in record["methods"]:
            watcher.say(f"{method} is already in {options.out}")
            continue
        watcher.say(f"{method} …")
        record["methods"][method] = {**call, **_measured(comparison, method, record, options.out)}
        record["searches"].pop(method, None)
        write_json(options.out, FORMAT, record)
    record["methods"] = {name: record["methods"][name] for name in (*options.methods, *record["methods"])}
    return record


def _measured(comparison: Comparison, method: str, record: dict[str, Any], out: Path) -> dict[str, Any]:
    """Resumes the method's search where the record has one; the record is written after each of its runs."""
    known = [ThresholdRun.from_json(run, comparison.subject.graph) for run in record["searches"].get(method, [])]
    if known:
        comparison.watcher.say(f"{method} resumes after {len(known)} runs that {out} already has")

    def remember(runs: Sequence[ThresholdRun]) -> None:
        record["searches"][method] = [run.to_json() for run in runs]
        write_json(out, FORMAT, record)

    return comparison.measure(method, known, remember)


def _asked(options: MethodsOptions, subject: Subject, evaluation: ImageSet) -> dict[str, Any]:
    """All that the numbers depend on."""
    settings = options.settings.to_json()
    for name in ("method", "tau", "max_kl", "remove", "order"):
        del settings[name]
    opened = subject.opened
    return {
        "model": {"source": opened.source, "fingerprint": opened.model.fingerprint},
        "data": {"name": opened.splits.name, "evaluation": evaluation.fingerprint(), **subject.facts},
        "settings": settings,
        "flops": list(options.shares),
        "evaluation_images": len(evaluation),
        "environment": environment() | {"device": str(subject.setup.calibration.clean.device)},
    }


def build_parser() -> argparse.ArgumentParser:
    default = Settings()
    parser = command.make_parser(
        "methods",
        "Deletes equal shares of a model's FLOPs by each method, without training, and evaluates what is left.",
        EXAMPLE,
    )
    command.add_common(parser, "methods.json", "samples, draws and random scores")
    add = parser.add_argument
    add("--flops", dest="shares", type=command.read_shares, default="0.1,0.2,0.3,0.4", help="(default: %(default)s)")
    add("--methods", type=command.read_names, default="random,magnitude,taylor,eap,relp,eap-ig,acdc,eap-acdc",
        help="(default: %(default)s)")  # fmt: skip
    add("--granularity", choices=GRANULARITIES, default=default.granularity, help="(default: %(default)s)")
    add("--metric", choices=METRICS, default=default.metric, help="of eap, relp and eap-ig (default: %(default)s)")
    add("--samples", type=int, default=default.samples, help="calibration images (default: %(default)s)")
    add("--paths", type=int, default=default.paths, help="groups of hidden neurons an MLP (default: %(default)s)")
    add("--eval-samples", type=int, default=2000, help="evaluation images at most (default: %(default)s)")
    add("--markdown", type=Path, help="also write the table as Markdown")
    return parser


if __name__ == "__main__":
    sys.exit(main())

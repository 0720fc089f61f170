"""`python -m benchmarks.faithfulness`: how faithful methods' circuits are at every size, over several seeds."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import command
from benchmarks.curves import FRACTIONS, Evaluator
from benchmarks.faithfulness_table import draw, markdown, table
from benchmarks.planted import read_circuit_names
from benchmarks.rank_checks import auroc, exact_costs, rank_correlation
from benchmarks.rankings import Run, rank_edges, read_method
from benchmarks.subject import Opened, Subject, open_model_and_data, open_subject
from vitfx.circuits.circuit import GRANULARITIES
from vitfx.cli.exit_codes import GOES_ON
from vitfx.discovery.basis.ablation import make_reference
from vitfx.discovery.basis.calibration import calibrate
from vitfx.discovery.basis.settings import ABLATIONS, CORRUPTIONS, Settings
from vitfx.images.image_set import Images
from vitfx.support.console import entry_point
from vitfx.support.devices import pick_device
from vitfx.support.errors import UserError
from vitfx.support.json_files import write_json
from vitfx.support.machine import environment, load_average
from vitfx.support.progress import Watcher
from vitfx.support.tables import Table

FORMAT = "vitfx-faithfulness/1"
METHODS = (
    "random,magnitude,taylor,eap,eap:logit-difference,relp,relp:logit-difference,eap-ig,eap-ig:logit-difference,"
    "eap-ig-activations,eap-ig-activations:logit-difference,ensemble,edge-pruning,acdc,eap-acdc"
)
EXAMPLE = """example:
  python -m benchmarks.faithfulness vit.pt --data photos/ --markdown curves.md --plot curves.png
  python -m benchmarks.planted planted/
  python -m benchmarks.faithfulness planted/planted.pt --paths 2 --granularity edge --truth planted/circuit.json

Each method ranks all edges on its calibration images, once for each seed. Circuits of the first 0.1 % to 100 % of them
are then run on held-out images that the model answers rightly, without the edges that are connected to neither end.
f(k) is the share of the metric that is left: 1 for the whole model, 0 with every edge ablated. CPR is the area under f
in signed order, more is better; CMD that between f and 1 by magnitude, less is better (MIB, Mueller et al. 2025). A
method may be followed by its metric, as in eap:loss. Rows and runs that --out already has are kept."""


@dataclass(frozen=True, kw_only=True)
class FaithfulnessOptions(command.CommonOptions):
    """What `benchmarks.faithfulness` is asked for; its seed is the first."""

    methods: tuple[str, ...]
    seeds: int
    taus: tuple[float, ...]  #: at which methods run that decide at a threshold
    granularity: str
    ablation: str
    corruption: str
    samples: int  #: calibration images
    paths: int
    eval_samples: int  #: evaluation images at most, before those are left out that the model answers wrongly
    exact: int  #: edges of heads, and as many of MLP paths, whose exact cost ranks are compared with
    truth: Path | None
    markdown: Path | None
    plot: Path | None

    def __post_init__(self) -> None:
        super().__post_init__()
        for method in self.methods:
            read_method(method, self.settings)
        command.check_least(1, seeds=self.seeds)
        command.check_least(0, exact=self.exact)
        command.check_least(2, eval_samples=self.eval_samples)
        command.check_pages(self.markdown, self.plot)

    @property
    def settings(self) -> Settings:
        """Of the first seed. Raises UserError."""
        return Settings(
            granularity=self.granularity,
            ablation=self.ablation,
            corruption=self.corruption,
            samples=self.samples,
            paths=self.paths,
            seed=self.seed,
        )


@entry_point
def main(arguments: Sequence[str] | None = None) -> int:
    return command.run_command(
        lambda: FaithfulnessOptions(**vars(build_parser().parse_args(arguments))), _work, lambda: GOES_ON
    )


def _work(options: FaithfulnessOptions, watcher: Watcher) -> list[Table]:
    record = measure(options, watcher)
    command.write_pages(options.markdown, options.plot, lambda: markdown(record), lambda: draw(record))
    return [table(record)]


def measure(options: FaithfulnessOptions, watcher: Watcher) -> dict[str, Any]:
    """Makes the rows that --out lacks; the JSON record, which is written after each. Raises UserError."""
    opened = open_model_and_data(options.model, options.data, options.samples, options.seed, watcher)
    images = _answered_rightly(opened, options, watcher)
    truth = None if options.truth is None else read_circuit_names(options.truth, options.granularity)
    asked = _asked(options, opened, images, truth)
    record: dict[str, Any] = {"asked": asked, **command.read_finished(options.out, FORMAT, asked, "rows", "runs")}
    for seed in range(options.seed, options.seed + options.seeds):
        trial = _Trial(options, images, truth, seed, watcher)
        for method in options.methods:
            if (name := f"{method} {seed}") in record["rows"]:
                watcher.say(f"{method}, seed {seed}: {options.out} already has it")
                continue
            runs = record["runs"].setdefault(name, {})
            watcher.say(f"{method}, seed {seed}" + (f", after {len(runs)} runs that {options.out} has" if runs else ""))
            row = trial.row(method, runs, partial(write_json, options.out, FORMAT, record))
            record["rows"][name] = row
            del record["runs"][name]
            write_json(options.out, FORMAT, record)
    return record


def _answered_rightly(opened: Opened, options: FaithfulnessOptions, watcher: Watcher) -> Images:
    """The evaluation images whose top-1 is their label, so that the logit difference is the true class's; all where
    there are no labels. Raises UserError where they are fewer than two."""
    images = opened.evaluation(options.eval_samples).load(watcher.bar("loading"))
    if images.labels is None:
        return images
    with torch.no_grad():
        answers = torch.cat([opened.model.module(pixels).argmax(dim=-1) for pixels in images.pixels.split(32)])
    right = (answers == images.labels).nonzero()[:, 0]
    if len(right) < 2:
        raise UserError(
            f"the model answers {len(right)} of {len(images)} evaluation images rightly: give more with --eval-samples"
        )
    return Images(images.pixels[right], images.labels[right], tuple(images.names[index] for index in right.tolist()))


def _asked(
    options: FaithfulnessOptions, opened: Opened, images: Images, truth: frozenset[str] | None
) -> dict[str, Any]:
    """All that a row depends on besides its method and seed."""
    settings = options.settings.to_json()
    for name in ("method", "metric", "tau", "max_kl", "remove", "order", "seed"):
        del settings[name]
    return {
        "model": {"source": options.model, "fingerprint": opened.model.fingerprint},
        "data": {
            "name": opened.splits.name,
            "evaluation": opened.evaluation(options.eval_samples).fingerprint(),
            "answered_rightly": len(images),
            "corruption_seed": options.seed,
        },
        "settings": settings,
        "taus": sorted(options.taus),
        "exact": options.exact,
        "fractions": list(FRACTIONS),
        "truth": None if truth is None else sorted(truth),
        "environment": environment() | {"device": str(pick_device(options.device))},
    }


class _Trial:
    """One seed, of calibration images, corruptions, draws and random scores. Nothing is opened before it is needed."""

    def __init__(
        self,
        options: FaithfulnessOptions,
        images: Images,
        truth: frozenset[str] | None,
        seed: int,
        watcher: Watcher,
    ) -> None:
        self.options, self.images, self.truth, self.watcher = options, images, truth, watcher
        self.settings = replace(options.settings, seed=seed)

    @cached_property
    def subject(self) -> Subject:
        device = pick_device(self.options.device)
        return open_subject(self.options.model, self.options.data, self.settings, device, self.watcher)

    @cached_property
    def evaluator(self) -> Evaluator:
        """Constants stand in for what is ablated on calibration images; a resampling ablation takes the evaluation
        images' own counterparts."""
        subject, setup = self.subject, self.subject.setup
        device, divergence = setup.calibration.clean.device, setup.calibration.divergence
        held_out = calibrate(self.images, self.settings.corruption, self.options.seed, device, divergence=divergence)
        reference = setup.reference
        if self.settings.ablation == "resample":
            reference = make_reference(setup.coarse, held_out.corrupted, "resample")
        return Evaluator(subject.graph, held_out, reference)

    @cached_property
    def costs(self) -> dict[str, dict[str, float]]:
        """What removing some edges costs, each alone, in nats on the calibration images: by the writer's kind, then by
        the edge's name."""
        subject, setup = self.subject, self.subject.setup
        return exact_costs(
            Evaluator(subject.graph, setup.calibration, setup.reference),
            self.options.exact,
            self.settings.seed,
            self.watcher.bar("exact costs"),
        )

    def row(self, method: str, runs: dict[str, Run], remember: Callable[[], None]) -> dict[str, Any]:
        """Ready for JSON. runs, remember: see `rank_edges`. seconds: of ranking, less runs that were known. Raises
        UserError."""
        settings, subject, load = read_method(method, self.settings), self.subject, load_average()
        begin = time.perf_counter()
        scores = rank_edges(subject, settings, self.options.taus, self.watcher, runs, remember)
        seconds = time.perf_counter() - begin
        return {
            "method": method,
            "seed": settings.seed,
            "calibration": subject.facts["images"],
            "edges": len(scores),
            "seconds": seconds,
            "load_average_before": load,
            **self.evaluator.measure(scores, self.watcher.bar("circuits")),
            "auroc": None if self.truth is None else auroc(scores, self.truth),
            "spearman": {kind: rank_correlation(scores, costs) for kind, costs in self.costs.items()},
        }


def build_parser() -> argparse.ArgumentParser:
    default = Settings()
    parser = command.make_parser(
        "faithfulness", "Runs methods' circuits of every size, and draws how faithful they are.", EXAMPLE
    )
    command.add_common(parser, "faithfulness.json", "the first seed's samples, draws and random scores")
    add = parser.add_argument
    add("--methods", type=command.read_names, default=METHODS, help="(default: all, some by two metrics)")
    add("--seeds", type=int, default=3, help="how many (default: %(default)s)")
    add("--taus", type=_read_taus, default="0.0001,0.001,0.01,0.1,1",
        help="of acdc and eap-acdc (default: %(default)s)")  # fmt: skip
    add("--granularity", choices=GRANULARITIES, default=default.granularity, metavar="NAME",
        help=f"{', '.join(GRANULARITIES)} (default: %(default)s)")  # fmt: skip
    add("--ablation", choices=ABLATIONS, default=default.ablation, metavar="NAME",
        help=f"{', '.join(ABLATIONS)} (default: %(default)s)")  # fmt: skip
    add("--corruption", choices=CORRUPTIONS, default=default.corruption, metavar="NAME",
        help=f"{', '.join(CORRUPTIONS)} (default: %(default)s)")  # fmt: skip
    add("--samples", type=int, default=default.samples, help="calibration images (default: %(default)s)")
    add("--paths", type=int, default=default.paths, help="groups of hidden neurons an MLP (default: %(default)s)")
    add("--eval-samples", type=int, default=256, help="evaluation images at most (default: %(default)s)")
    add("--exact", type=int, default=30,
        help="edges of each, heads and MLP paths, whose exact cost is compared (default: %(default)s)")  # fmt: skip
    add("--truth", type=Path, help="circuit.json of benchmarks.planted: also the AUROC of its edges")
    add("--markdown", type=Path, help="also write the table as Markdown")
    add("--plot", type=Path, help="also draw the curves, as PNG")
    return parser


def _read_taus(text: str) -> tuple[float, ...]:
    try:
        taus = tuple(float(tau) for tau in text.split(","))
    except ValueError as error:
        raise UserError(f"--taus is {text!r}: give thresholds such as 0.001,0.01,0.1") from error
    if not all(0 <= tau < float("inf") for tau in taus):
        raise UserError(f"--taus is {text}: give finite thresholds of 0 or more, such as 0.001,0.01,0.1")
    return taus


if __name__ == "__main__":
    sys.exit(main())

"""`python -m benchmarks.discovery`: discovery against the naive loop, edge by edge: time and equal decisions."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.agreement import agreement, engine_agreement, extrapolate, times
from benchmarks.discovery_table import tables
from benchmarks.naive import BATCH, Naive
from benchmarks.opening import Subject, check_out, open_subject, settings_of
from benchmarks.sampling import LiveSampler, Sample, draw, walk
from vitfx.circuits.circuit import GRANULARITIES, Circuit, Decision
from vitfx.cli.exit_codes import ending
from vitfx.discovery.basis.journal import NoJournal
from vitfx.discovery.basis.protocol import Limits
from vitfx.discovery.basis.settings import RANKING, Settings
from vitfx.discovery.methods.acdc import acdc
from vitfx.discovery.methods.eap_acdc import eap_acdc
from vitfx.support.devices import NAMES, pick_device
from vitfx.support.errors import UserError
from vitfx.support.files import write_aside
from vitfx.support.machine import environment, load_average
from vitfx.support.progress import Watcher, console_watcher

METHODS = ("acdc", "eap-acdc")
EXAMPLE = """example:
  python -m benchmarks.discovery vit.pt --data tiny-imagenet-200/ --tau 0.01 --out head.json
  python -m benchmarks.discovery vit.pt --data tiny-imagenet-200/ --granularity qkv --tau 1e-4 --method eap-acdc \\
      --edges 200 --out qkv.json --write-circuit circuit.json
  python -m benchmarks.discovery vit.pt --data tiny-imagenet-200/ --circuit circuit.json --edges 200 --out exact.json

Without --circuit the method is run over the whole graph, and its time is measured; the naive loop is asked about a
sample of edges in between, off the method's clock. With --circuit nothing is decided anew: the circuit's decisions are
taken reader by reader, and at a sample of them exact ACDC and the naive loop are asked in turn. That gives the time of
exact ACDC where a whole run would take hours (extrapolated, and called so), and how often the circuit decided as ACDC
would have done there; of eap-acdc, which decides all readers of a sublayer together, a run tells better. A circuit that
a ranking method found will do as well, with --tau."""


@dataclass(frozen=True)
class Options:
    """seed: of the drawn edges and, without a circuit, of the run."""

    model: str
    data: str | None
    settings: Settings
    circuit: Circuit | None
    edges: int
    device: str
    out: Path
    write_circuit: Path | None
    seed: int

    def __post_init__(self) -> None:
        if self.edges < 1:
            raise UserError(f"--edges is {self.edges}: give 1 or more")
        check_out(self.out)
        if self.write_circuit is not None:
            check_out(self.write_circuit, "write-circuit")


def main(arguments: Sequence[str] | None = None) -> int:
    console = Console()

    def work() -> None:
        options = _options(_parser().parse_args(arguments))
        with console_watcher(console) as watcher:
            record = measure(options, watcher)
        write_aside(options.out, json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        for table in tables(record):
            console.print(table)
        console.print(f"written to {options.out}", highlight=False, markup=False, soft_wrap=True)

    return ending(work)


def measure(options: Options, watcher: Watcher) -> dict[str, Any]:
    """The JSON record; raises UserError."""
    load = load_average()
    settings = options.settings
    subject = open_subject(options.model, options.data, settings, pick_device(options.device), watcher, options.circuit)
    setup = subject.setup
    naive = Naive(subject.graph_module, subject.graph, setup.calibration, setup.reference)
    # Neither is to be timed cold.
    naive.kl([])
    naive.plain()
    total = len(subject.graph.edges())
    chosen = draw(total, options.edges, options.seed)
    if options.circuit is None:
        samples, whole = _live(options, subject, naive, chosen, watcher)
    else:
        samples, whole = _walk(options.circuit, settings, subject, naive, chosen, watcher)
    measured = times(samples)
    naive_whole, plain_whole = (measured[name]["mean"] * total for name in ("naive", "plain_forward"))
    return {
        "settings": settings.to_json() | {"sampled_edges": options.edges, "sampling_seed": options.seed},
        "circuit": None if options.circuit is None else options.circuit.fingerprint(),
        "environment": environment() | {"load_average_before": load, "device": options.device},
        "model": {"source": options.model, "fingerprint": subject.model.fingerprint},
        "data": {"name": subject.splits.name, "fingerprint": subject.sample.fingerprint(), **subject.facts},
        "naive_batch": BATCH,
        "edges": total,
        "whole_run": whole,
        "naive_whole_run": {"seconds": naive_whole, "how": "extrapolated"},
        "forward_pass_an_edge": {"seconds": plain_whole, "how": "extrapolated"},
        "whole_ratio": naive_whole / whole["seconds"],
        "seconds_per_edge": whole["seconds"] / total,
        "times": measured,
        "agreement": agreement(samples),
        "engine_agreement": engine_agreement(samples),
        "samples": [one.to_json() for one in samples],
    }


def _live(
    options: Options, subject: Subject, naive: Naive, chosen: set[int], watcher: Watcher
) -> tuple[list[Sample], dict[str, Any]]:
    """The method over the whole graph, timed without the naive loop's questions."""
    settings, limits = options.settings, Limits(options.settings.tau, options.settings.max_kl)
    exact = settings.method == "acdc"
    sampler = LiveSampler(naive, chosen, limits, watcher.bar(settings.method), together=not exact)
    decisions: list[Decision]
    if exact:
        decisions = acdc(subject.engine(), subject.order(), limits, NoJournal(), sampler)
    else:
        decisions = eap_acdc(subject.engine(), limits, NoJournal(), settings.seed, sampler)
    sampler.pause()
    kls = [one.kl for one in decisions if not one.kept and one.kl is not None]
    kl = kls[-1] if kls else 0.0
    if options.write_circuit is not None:
        circuit = Circuit(tuple(decisions), kl, settings.to_json(), subject.facts)
        write_aside(options.write_circuit, circuit.to_json())
    removed = sum(not one.kept for one in decisions)
    whole = {"method": settings.method, "seconds": sampler.seconds, "how": "measured", "removed": removed, "kl": kl}
    return sampler.samples, whole


def _walk(
    circuit: Circuit, settings: Settings, subject: Subject, naive: Naive, chosen: set[int], watcher: Watcher
) -> tuple[list[Sample], dict[str, Any]]:
    limits = Limits(settings.tau, settings.max_kl)
    walked = walk(subject.engine(), naive, circuit.decisions, chosen, limits, watcher.bar("asking"))
    seconds = extrapolate(walked, len(circuit.removed))
    whole = {"method": "acdc", "seconds": seconds, "how": "extrapolated", "visit_seconds": walked.visit_seconds}
    return walked.samples, whole | {"removed": len(circuit.removed), "kl": circuit.kl}


def _options(parsed: argparse.Namespace) -> Options:
    given = {"granularity": parsed.granularity, "tau": parsed.tau, "samples": parsed.samples, "paths": parsed.paths}
    given = {name: value for name, value in given.items() if value is not None}
    circuit = None
    if parsed.circuit is None:
        settings = Settings(method=parsed.method or "acdc", seed=parsed.seed, **given)
    else:
        circuit, settings = _circuit(parsed.circuit, given)
        for name in ("method", "write_circuit"):
            if getattr(parsed, name) is not None:
                option = name.replace("_", "-")
                raise UserError(f"--{option} is for a run, and with --circuit nothing is decided anew: leave one out")
    return Options(
        model=parsed.model,
        data=parsed.data,
        settings=settings,
        circuit=circuit,
        edges=parsed.edges,
        device=parsed.device,
        out=parsed.out,
        write_circuit=parsed.write_circuit,
        seed=parsed.seed,
    )


def _circuit(path: Path, given: dict[str, Any]) -> tuple[Circuit, Settings]:
    try:
        circuit = Circuit.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--circuit {path} can't be read: give a circuit.json that vitfx wrote") from error
    settings = settings_of(circuit)
    if settings.method in RANKING and "tau" in given:
        # What ranks has a threshold of its own, if any; ACDC is asked at this one.
        settings = replace(settings, method="acdc", metric="kl", remove=None, tau=given["tau"])
    for name, value in given.items():
        if value != (found := getattr(settings, name)):
            raise UserError(f"--{name} {value} is not what --circuit was found with, {found}: leave --{name} out")
    if settings.method in RANKING:
        raise UserError(f"--circuit {path} was found by {settings.method}: give --tau, at which ACDC is to be asked")
    return circuit, settings


def _parser() -> argparse.ArgumentParser:
    default = Settings()
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.discovery",
        description="Times discovery and the naive loop on a sample of edges, in turns, and compares their decisions.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", nargs="?", default="demo", help="model file (default: demo)")
    parser.add_argument("--data", help="images (default: what the model names)")
    parser.add_argument("--method", choices=METHODS, help="what is run (default: acdc)")
    parser.add_argument("--granularity", choices=GRANULARITIES, help=f"(default: {default.granularity})")
    parser.add_argument("--tau", type=float, help=f"nats an image (default: {default.tau:g})")
    parser.add_argument("--samples", type=int, help=f"calibration images (default: {default.samples})")
    parser.add_argument("--paths", type=int, help=f"groups of hidden neurons an MLP (default: {default.paths})")
    parser.add_argument("--edges", type=int, default=40, help="sampled for the naive loop (default: %(default)s)")
    parser.add_argument("--circuit", type=Path, help="circuit.json, whose settings, decisions and states are taken")
    parser.add_argument("--device", default="auto", help=f"{NAMES} (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the sampled edges, and of a run (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("discovery.json"), help="JSON file (default: %(default)s)")
    parser.add_argument("--write-circuit", type=Path, help="also write the circuit that the run found")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""`python -m benchmarks.discovery`: discovery against the naive loop, edge by edge: time and equal decisions."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from benchmarks.agreement import agreement, engine_agreement, extrapolate, times
from benchmarks.command import CommonOptions, add_common, check_least, check_out, make_parser, run_command
from benchmarks.discovery_table import tables
from benchmarks.naive import BATCH, Naive
from benchmarks.sampling import LiveSampler, Sample, draw, walk
from benchmarks.subject import Subject, open_subject
from vitfx.circuits.circuit import GRANULARITIES, Circuit, Decision
from vitfx.discovery.basis.journal import NoJournal
from vitfx.discovery.basis.protocol import Limits
from vitfx.discovery.basis.settings import MEASURING, Settings
from vitfx.discovery.methods.acdc import acdc
from vitfx.discovery.methods.eap_acdc import eap_acdc
from vitfx.support.console import entry_point
from vitfx.support.devices import pick_device
from vitfx.support.errors import UserError
from vitfx.support.files import write_aside
from vitfx.support.json_files import write_json
from vitfx.support.machine import environment, load_average
from vitfx.support.progress import Watcher
from vitfx.support.tables import Table

FORMAT = "vitfx-discovery-benchmark/1"
METHODS = ("acdc", "eap-acdc")
EXAMPLE = """example:
  python -m benchmarks.discovery vit.pt --data photos/ --tau 0.01 --out head.json
  python -m benchmarks.discovery vit.pt --data photos/ --granularity qkv --method eap-acdc \\
      --edges 200 --tau 1e-4 --out qkv.json --write-circuit circuit.json
  python -m benchmarks.discovery vit.pt --data photos/ --circuit circuit.json --out exact.json

Without --circuit the method runs over the whole graph and is timed; in between, off its clock, the naive loop is asked
about a sample of edges. With --circuit no decision is made anew: the circuit's decisions are replayed reader by reader,
and at a sample of them exact ACDC and the naive loop are asked in turn. That gives the time of exact ACDC where a whole
run would take hours (extrapolated, and marked so), and how often the circuit decided as ACDC would have decided there.
For eap-acdc, which decides all readers of a sublayer together, a run tells more. A circuit found by a ranking method
works as well, with --tau."""


@dataclass(frozen=True, kw_only=True)
class DiscoveryOptions(CommonOptions):
    """What `benchmarks.discovery` is asked for. The seed draws the edges and, without a circuit, is the run's."""

    settings: Settings
    circuit: Circuit | None
    edges: int  #: sampled for the naive loop
    write_circuit: Path | None

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(1, edges=self.edges)
        check_out("write-circuit", self.write_circuit)


@entry_point
def main(arguments: Sequence[str] | None = None) -> int:
    return run_command(lambda: _options(arguments), _work)


def _work(options: DiscoveryOptions, watcher: Watcher) -> list[Table]:
    record = measure(options, watcher)
    write_json(options.out, FORMAT, record)
    return tables(record)


def measure(options: DiscoveryOptions, watcher: Watcher) -> dict[str, Any]:
    """The JSON record. Raises UserError."""
    load = load_average()
    settings = options.settings
    subject = open_subject(options.model, options.data, settings, pick_device(options.device), watcher, options.circuit)
    setup, opened = subject.setup, subject.opened
    naive = Naive(subject.graph_module, subject.graph, setup.calibration, setup.reference)
    # Both are warmed up before they are timed.
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
        "model": {"source": opened.source, "fingerprint": opened.model.fingerprint},
        "data": {"name": opened.splits.name, "fingerprint": opened.sample.fingerprint(), **subject.facts},
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
        "samples": [sample.to_json() for sample in samples],
    }


def _live(
    options: DiscoveryOptions, subject: Subject, naive: Naive, chosen: set[int], watcher: Watcher
) -> tuple[list[Sample], dict[str, Any]]:
    """The method over the whole graph, timed without the questions to the naive loop."""
    settings, limits = options.settings, Limits(options.settings.tau, options.settings.max_kl)
    exact = settings.method == "acdc"
    sampler = LiveSampler(naive, chosen, limits, watcher.bar(settings.method), together=not exact)
    decisions: list[Decision]
    if exact:
        decisions = acdc(subject.engine(), subject.order(), limits, NoJournal(), sampler)
    else:
        decisions = eap_acdc(subject.engine(), limits, NoJournal(), settings.seed, sampler)
    sampler.pause()
    removed = [decision for decision in decisions if not decision.kept]
    kls = [decision.kl for decision in removed if decision.kl is not None]
    kl = kls[-1] if kls else 0.0
    if options.write_circuit is not None:
        circuit = Circuit(tuple(decisions), kl, settings.to_json(), subject.facts)
        write_aside(options.write_circuit, circuit.to_json())
    whole = {
        "method": settings.method,
        "seconds": sampler.seconds,
        "how": "measured",
        "removed": len(removed),
        "kl": kl,
    }
    return sampler.samples, whole


def _walk(
    circuit: Circuit, settings: Settings, subject: Subject, naive: Naive, chosen: set[int], watcher: Watcher
) -> tuple[list[Sample], dict[str, Any]]:
    limits = Limits(settings.tau, settings.max_kl)
    walked = walk(subject.engine(), naive, circuit.decisions, chosen, limits, watcher.bar("asking"))
    seconds = extrapolate(walked, len(circuit.removed))
    whole = {"method": "acdc", "seconds": seconds, "how": "extrapolated", "visit_seconds": walked.visit_seconds}
    return walked.samples, whole | {"removed": len(circuit.removed), "kl": circuit.kl}


def _options(arguments: Sequence[str] | None) -> DiscoveryOptions:
    parsed = build_parser().parse_args(arguments)
    asked = {name: getattr(parsed, name) for name in ("granularity", "tau", "samples", "paths")}
    given = {name: value for name, value in asked.items() if value is not None}
    circuit = None
    if parsed.circuit is None:
        settings = Settings(method=parsed.method or "acdc", seed=parsed.seed, **given)
    else:
        circuit, settings = _circuit(parsed.circuit, given)
        for option, value in (("method", parsed.method), ("write-circuit", parsed.write_circuit)):
            if value is not None:
                raise UserError(f"--{option} is for a run, and --circuit runs nothing: leave one of them out")
    common = {field.name: getattr(parsed, field.name) for field in fields(CommonOptions)}
    return DiscoveryOptions(
        **common, settings=settings, circuit=circuit, edges=parsed.edges, write_circuit=parsed.write_circuit
    )


def _circuit(path: Path, given: dict[str, Any]) -> tuple[Circuit, Settings]:
    try:
        circuit = Circuit.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--circuit {path} can't be read: give a circuit.json that vitfx wrote") from error
    settings = Settings.from_json(circuit.settings)
    if settings.method not in MEASURING and "tau" in given:
        # Another method's own threshold, if it has one, means something else: ACDC is asked at this one.
        settings = replace(settings, method="acdc", metric="kl", remove=None, tau=given["tau"])
    for name, value in given.items():
        if value != (own := getattr(settings, name)):
            raise UserError(f"--{name} {value} is not what --circuit was found with, {own}: leave --{name} out")
    if settings.method not in MEASURING:
        raise UserError(f"--circuit {path} was found by {settings.method}: give --tau, the threshold to ask ACDC at")
    return circuit, settings


def build_parser() -> argparse.ArgumentParser:
    default = Settings()
    parser = make_parser(
        "discovery",
        "Times discovery and the naive loop on a sample of edges, in turns, and compares their decisions.",
        EXAMPLE,
    )
    add_common(parser, "discovery.json", "the sampled edges, and of a run")
    add = parser.add_argument
    add("--method", choices=METHODS, help="the method to run (default: acdc)")
    add("--granularity", choices=GRANULARITIES, help=f"(default: {default.granularity})")
    add("--tau", type=float, help=f"nats an image (default: {default.tau:g})")
    add("--samples", type=int, help=f"calibration images (default: {default.samples})")
    add("--paths", type=int, help=f"groups of hidden neurons an MLP (default: {default.paths})")
    add("--edges", type=int, default=40, help="edges sampled for the naive loop (default: %(default)s)")
    add("--circuit", type=Path, help="circuit.json whose settings, decisions and states are used")
    add("--write-circuit", type=Path, help="also write the circuit that the run found")
    return parser


if __name__ == "__main__":
    sys.exit(main())

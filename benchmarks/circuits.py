"""`python -m benchmarks.circuits`: edges removed and attributed by vitfx and by other tools, with their times."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from scipy.stats import spearmanr

from benchmarks import command
from benchmarks.circuit_tools import LOSS, VITFX, Scores, Tools, open_tools, paths_of_graph
from benchmarks.circuits_table import table
from benchmarks.hooked import HOOKED
from benchmarks.sampling import draw
from benchmarks.subject import open_model_and_data
from vitfx.discovery.basis.settings import Settings
from vitfx.support.console import entry_point
from vitfx.support.json_files import write_json
from vitfx.support.machine import environment, load_average
from vitfx.support.progress import Watcher
from vitfx.support.tables import Table
from vitfx.support.timing import Timing, ratio, time_interleaved

FORMAT = "vitfx-circuit-tools/1"
LEAST_EFFECT = 1e-12
"""Nats, below which float64 rounds away the digits that are compared."""
EXAMPLE = """example:
  python -m benchmarks.circuits vit.pt --data photos/ --samples 32

The same model, images and mean ablation go through vitfx and through peers, which run the ViT of Hugging Face with the
same weights: torch's own hooks (plain-hooks), and TransformerLens, which needs pip install 'vitfx[lens]'. Values are
compared in float64: the KL divergence that each of some edges costs alone, and the scores of EAP and EAP-IG, with the
cross-entropy as metric, of all edges. Times are of float32, edge by edge and round by round in turns, on the CPU."""


@dataclass(frozen=True, kw_only=True)
class CircuitsOptions(command.CommonOptions):
    """What `benchmarks.circuits` is asked for; its seed draws samples, counterparts and edges."""

    peers: tuple[str, ...]
    granularity: str
    samples: int
    paths: int
    edges: int  #: whose effects are compared
    steps: int  #: of EAP-IG
    rounds: int  #: of timing attributions

    def __post_init__(self) -> None:
        super().__post_init__()
        command.check_names("peers", self.peers, HOOKED)
        command.check_least(2, edges=self.edges, steps=self.steps)
        command.check_least(3, rounds=self.rounds)

    @property
    def settings(self) -> Settings:
        """Raises UserError."""
        return Settings(granularity=self.granularity, samples=self.samples, paths=self.paths, seed=self.seed)


@entry_point
def main(arguments: Sequence[str] | None = None) -> int:
    return command.run_command(lambda: CircuitsOptions(**vars(build_parser().parse_args(arguments))), _work)


def _work(options: CircuitsOptions, watcher: Watcher) -> list[Table]:
    record = measure(options, watcher)
    write_json(options.out, FORMAT, record)
    return [table(record)]


def measure(options: CircuitsOptions, watcher: Watcher) -> dict[str, Any]:
    """The JSON record. Raises UserError."""
    load, settings = load_average(), options.settings
    opened = open_model_and_data(options.model, options.data, options.samples, options.seed, watcher)
    single = open_tools(opened, settings, options.peers, torch.float32)
    double = open_tools(opened, settings, options.peers, torch.float64, paths_of_graph(single.graph))
    edges = single.graph.edges()
    watcher.say(f"the {options.granularity} graph has {len(edges):,} edges")
    chosen = [edges[at] for at in sorted(draw(len(edges), options.edges, options.seed))]
    steps = {"eap": 1, "eap-ig": options.steps}
    effects = double.effects(chosen, watcher.bar("effects"))
    scores = {}
    for method, count in steps.items():
        watcher.say(f"{method} …")
        scores[method] = {tool: attribute() for tool, attribute in double.attributions(count).items()}
    times, besides = single.time_effects(chosen, watcher.bar("timing effects"))
    return {
        "settings": settings.to_json() | {"metric": LOSS, "steps": options.steps, "sampled_edges": len(chosen)},
        "environment": environment() | {"load_average_before": load, "device": "cpu"},
        "model": {"source": options.model, "fingerprint": opened.model.fingerprint},
        "data": {"name": opened.splits.name, "fingerprint": opened.sample.fingerprint()},
        "packages": {tool: peer.vit.package for tool, peer in single.peers.items()},
        "edges": len(edges),
        "effects": effects,
        "agreement": {
            "effect": _agreement(effects, LEAST_EFFECT),
            **{method: _agreement(of) for method, of in scores.items()},
        },
        "times": {
            "effect": _with_ratios(times),
            **{method: _with_ratios(_rounds(single, count, options, watcher)) for method, count in steps.items()},
        },
        "seconds_besides_an_edge": besides / len(edges),
    }


def _agreement(by_tool: Mapping[str, Scores], least: float = math.inf) -> dict[str, dict[str, float | int]]:
    """Each peer's values against vitfx's: Spearman's correlation, and the greatest difference, as a share of the
    greatest value; and as a share of the value itself, of those that are `least` or more."""
    own = by_tool[VITFX]
    greatest, enough = max(map(abs, own.values())), {name for name, value in own.items() if value >= least}
    agreement: dict[str, dict[str, float | int]] = {}
    for tool, values in by_tool.items():
        if tool == VITFX:
            continue
        differences = {name: abs(values[name] - value) for name, value in own.items()}
        agreement[tool] = {
            "rank_correlation": float(spearmanr(list(own.values()), [values[name] for name in own]).statistic),
            "of_greatest": max(differences.values()) / greatest,
        }
        if enough:
            agreement[tool]["relative"] = max(differences[name] / own[name] for name in enough)
            agreement[tool]["relative_of"] = len(enough)
    return agreement


def _rounds(tools: Tools, steps: int, options: CircuitsOptions, watcher: Watcher) -> dict[str, Timing]:
    def forgetful(attribute: Any) -> Any:
        return lambda: attribute() and None

    runs = {tool: forgetful(attribute) for tool, attribute in tools.attributions(steps).items()}
    return time_interleaved(runs, warmup=0, rounds=options.rounds, progress=watcher.bar("timing attributions"))


def _with_ratios(times: Mapping[str, Timing]) -> dict[str, Any]:
    """By the tool; the ratio is its time by vitfx's."""
    return {tool: timing.to_json() | {"ratio": asdict(ratio(timing, times[VITFX]))} for tool, timing in times.items()}


def build_parser() -> argparse.ArgumentParser:
    default = Settings()
    parser = command.make_parser(
        "circuits", "Removes and attributes the same edges with vitfx and with other tools.", EXAMPLE
    )
    command.add_common(parser, "circuits.json", "samples, their counterparts and the sampled edges")
    add = parser.add_argument
    add("--peers", type=command.read_names, default=",".join(HOOKED), help="(default: %(default)s)")
    add("--granularity", choices=("edge", "qkv"), default="qkv", help="(default: %(default)s)")
    add("--samples", type=int, default=32, help="images (default: %(default)s)")
    add("--paths", type=int, default=default.paths, help="groups of hidden neurons an MLP (default: %(default)s)")
    add("--edges", type=int, default=40, help="edges sampled, whose effects are compared (default: %(default)s)")
    add("--steps", type=int, default=default.steps, help="of EAP-IG (default: %(default)s)")
    add("--rounds", type=int, default=3, help="of timing attributions, 3 at least (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""`python -m benchmarks.peers`: ways of pruning side by side at equal FLOPs, without training, on one runtime."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import command
from benchmarks.match import Match, open_match
from benchmarks.measure import timed
from benchmarks.peer_models import PEERS, version_of
from benchmarks.peers_table import draw, markdown, table
from benchmarks.subject import open_model_and_data
from vitfx.cli.exit_codes import GOES_ON
from vitfx.cli.goal_options import SAMPLES
from vitfx.deploy.precisions import FP32
from vitfx.pruning.goal import Target, parse_target
from vitfx.reports.records import PEERS_RECORD
from vitfx.support.console import entry_point
from vitfx.support.devices import pick_device
from vitfx.support.errors import UserError
from vitfx.support.json_files import write_json
from vitfx.support.machine import load_average
from vitfx.support.progress import Watcher
from vitfx.support.tables import Table

FORMAT = PEERS_RECORD
EXAMPLE = """example:
  python -m benchmarks.peers vit.pt --data photos/ --markdown peers.md --plot peers.png

Each peer deletes each share of the FLOPs, calibrated on the same images; nothing is trained. vitfx-time takes the share
off the time instead, as vitfx.prune --target-speedup does. Every result is exported after the same exact rewrites and
run on ONNX Runtime, which gives its top-1, KL and agreement, and its time in turns with the original's plain export.
Rows that --out already has, made with the same settings on the same machine, are not made again, except those of the
peers that --again names. The torch-pruning peers need pip install 'vitfx[peers]'."""


@dataclass(frozen=True, kw_only=True)
class PeersOptions(command.CommonOptions):
    """What `benchmarks.peers` is asked for."""

    peers: tuple[str, ...]
    again: tuple[str, ...]  #: peers whose rows are made again
    shares: tuple[float, ...]  #: of the FLOPs, or of the time, 0 to 1
    samples: int  #: calibration images
    eval_samples: int  #: evaluation images
    target: Target
    rounds: int  #: of timing
    markdown: Path | None
    plot: Path | None

    def __post_init__(self) -> None:
        super().__post_init__()
        command.check_names("peers", self.peers, PEERS)
        command.check_names("again", self.again, PEERS)
        if missing := [peer for peer in self.again if peer not in self.peers]:
            raise UserError(f"--again {missing[0]} is not one of --peers: name it there as well")
        if self.target.precision != FP32:
            raise UserError(f"--target {self.target} asks for {self.target.precision}: all peers are timed in {FP32}")
        # With fewer, none are left to fit on beside those held out and those that choose the shrinkage.
        command.check_least(8, samples=self.samples)
        command.check_least(1, eval_samples=self.eval_samples, rounds=self.rounds)
        command.check_pages(self.markdown, self.plot)


@entry_point
def main(arguments: Sequence[str] | None = None) -> int:
    return command.run_command(
        lambda: PeersOptions(**vars(build_parser().parse_args(arguments))), _work, lambda: GOES_ON
    )


def _work(options: PeersOptions, watcher: Watcher) -> list[Table]:
    record = compare(options, watcher)
    command.write_pages(options.markdown, options.plot, lambda: markdown(record), lambda: draw(record))
    return [table(record)]


def compare(options: PeersOptions, watcher: Watcher) -> dict[str, Any]:
    """Makes the rows that are not in --out yet; the JSON record, which is written after each. Raises UserError."""
    versions = {peer: version_of(peer) for peer in options.peers}
    load = load_average()
    device = pick_device(options.device)
    opened = open_model_and_data(options.model, options.data, options.samples, options.seed, watcher)
    evaluation = opened.evaluation(options.eval_samples)
    match = open_match(opened, evaluation, options.target, options.rounds, device, watcher)
    record: dict[str, Any] = {"asked": match.asked, **command.read_finished(options.out, FORMAT, match.asked, "rows")}
    finished = record["rows"]

    def keep(name: str, row: dict[str, Any]) -> None:
        finished[name] = {"load_average_before": load, **row}
        write_json(options.out, FORMAT, record)

    if ORIGINAL not in finished:
        keep(ORIGINAL, {"peer": ORIGINAL, "share": 0.0, **match.measure(match.original)})
    for peer in options.peers:
        wanted = [share for share in options.shares if peer in options.again or _name(peer, share) not in finished]
        if len(wanted) < len(options.shares):
            watcher.say(f"{peer}: {options.out} already has {len(options.shares) - len(wanted)} of its rows")
        for share, row in _rows(match, peer, wanted):
            keep(_name(peer, share), {"peer": peer, "share": share, "package": versions[peer], **row})
    return record


ORIGINAL = "original"
"""The whole model after the exact rewrites."""


def _name(peer: str, share: float) -> str:
    return f"{peer} {share:g}"


def _rows(match: Match, peer: str, shares: Sequence[float]) -> Iterator[tuple[float, dict[str, Any]]]:
    """(share, row) for each; `refused` in a row says why the peer has none."""
    build = None
    for share in shares:
        match.watcher.say(f"{peer} at {share:.0%} …")
        try:
            build = build or PEERS[peer](match.given)
            seconds, graph_module = timed(partial(build, share), match.given.pixels.device)
        except UserError as error:
            match.watcher.say(f"{peer} at {share:.0%}: {error}")
            yield share, {"refused": str(error)}
            continue
        yield share, {**match.measure(graph_module), "seconds": seconds}


def build_parser() -> argparse.ArgumentParser:
    parser = command.make_parser(
        "peers", "Deletes equal shares of a model's FLOPs by several methods and measures what is left.", EXAMPLE
    )
    command.add_common(parser, "peers.json", "samples and random choices")
    add = parser.add_argument
    add("--flops", dest="shares", type=command.read_shares, default="0.1,0.2,0.3,0.4,0.5",
        help="shares to delete, of the time for vitfx-time (default: %(default)s)")  # fmt: skip
    add("--peers", type=command.read_names, default=",".join(PEERS), help="(default: %(default)s)")
    add(
        "--again",
        metavar="PEERS",
        type=command.read_names,
        default=(),
        help="peers whose rows are made again",
    )
    add("--samples", type=int, default=SAMPLES, help="calibration images, the same for all (default: %(default)s)")
    add("--eval-samples", type=int, default=2000, help="evaluation images at most (default: %(default)s)")
    add("--target", type=parse_target, default=str(Target()), metavar="DEVICE:batch=N",
        help="where and at which batch size times are measured (default: %(default)s)")  # fmt: skip
    add("--rounds", type=int, default=41, help="timings, in turns with the plain export (default: %(default)s)")
    add("--markdown", type=Path, help="also write the table as Markdown")
    add("--plot", type=Path, help="also draw top-1 against FLOPs and against speed, as PNG")
    return parser


if __name__ == "__main__":
    sys.exit(main())

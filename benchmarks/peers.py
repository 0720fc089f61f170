"""`python -m benchmarks.peers`: ways of pruning side by side at equal FLOPs, without training, on one runtime."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from benchmarks.match import Match, open_match
from benchmarks.opening import check_out
from benchmarks.peer_models import PEERS, version_of
from benchmarks.peers_table import draw, markdown, table
from benchmarks.results import read_known, write_record
from vitfx.cli.exit_codes import GOES_ON, ending
from vitfx.cli.goal_options import SAMPLES
from vitfx.deploy.precision_file import FP32
from vitfx.pruning.goal import Target, parse_target
from vitfx.support.console import HelpFormatter, entry_point
from vitfx.support.devices import NAMES
from vitfx.support.errors import UserError
from vitfx.support.files import write_aside
from vitfx.support.machine import load_average
from vitfx.support.pictures import has_matplotlib, png_bytes
from vitfx.support.progress import Watcher, console_watcher

EXAMPLE = """example:
  python -m benchmarks.peers vit.pt --data tiny-imagenet-200/ --out peers.json --markdown peers.md --plot peers.png

Each peer deletes each share of the FLOPs, calibrated on the same images; nothing is trained. vitfx-time takes the share
off the time instead, as vitfx.prune --target-speedup does. All that is left is exported after the same exact rewrites
and run on ONNX Runtime: top-1, KL and agreement of what was exported, and its time, in turns with the plain export of
the original. Rows that are in --out already, made with the same settings on the same machine, are not made again:
--again names peers whose rows are. The torch-pruning peers need pip install 'vitfx[peers]'."""


@dataclass(frozen=True)
class Options:
    """shares: of the FLOPs, or of the time, 0 to 1. samples, evaluation: images. rounds: of timing. again: peers to be
    made anew."""

    model: str
    data: str | None
    peers: tuple[str, ...]
    again: tuple[str, ...]
    shares: tuple[float, ...]
    samples: int
    evaluation: int
    target: Target
    rounds: int
    device: str
    seed: int
    out: Path
    markdown: Path | None
    plot: Path | None

    def __post_init__(self) -> None:
        if not self.shares or not all(0 < share < 1 for share in self.shares):
            raise UserError(f"--flops is {list(self.shares)}: give shares between 0 and 1, such as 0.1,0.2")
        for option, names in (("peers", self.peers), ("again", self.again)):
            if unknown := [one for one in names if one not in PEERS]:
                raise UserError(f"--{option} {unknown[0]} is not known: choose of {', '.join(PEERS)}")
        if left := [one for one in self.again if one not in self.peers]:
            raise UserError(f"--again {left[0]} is not one of --peers: name it there as well")
        if self.target.precision != FP32:
            raise UserError(f"--target {self.target} asks for {self.target.precision}: all peers are timed in {FP32}")
        # With fewer, nothing is left to fit on beside what is held out and what chooses the shrinkage.
        for option, value, least in (
            ("samples", self.samples, 8),
            ("eval-samples", self.evaluation, 1),
            ("rounds", self.rounds, 1),
        ):
            if value < least:
                raise UserError(f"--{option} is {value}: give {least} or more")
        for option, path in (("out", self.out), ("markdown", self.markdown), ("plot", self.plot)):
            if path is not None:
                check_out(path, option)
        if self.plot is not None and not has_matplotlib():
            raise UserError("--plot needs matplotlib: pip install 'vitfx[plot]'")


@entry_point
def main(arguments: Sequence[str] | None = None) -> int:
    console = Console()

    def work() -> None:
        options = _options(_parser().parse_args(arguments))
        with console_watcher(console) as watcher:
            record = compare(options, watcher)
        if options.markdown is not None:
            write_aside(options.markdown, markdown(record))
        if options.plot is not None:
            write_aside(options.plot, png_bytes(lambda: draw(record)))
        console.print(table(record))
        console.print(f"written to {options.out}", highlight=False, markup=False, soft_wrap=True)

    return ending(work, lambda: GOES_ON)


def compare(options: Options, watcher: Watcher) -> dict[str, Any]:
    """Makes the rows that are not in --out yet, which is written after each; the JSON record. Raises UserError."""
    versions = {peer: version_of(peer) for peer in options.peers}
    load = load_average()
    match = open_match(
        options.model,
        options.data,
        samples=options.samples,
        evaluation=options.evaluation,
        target=options.target,
        rounds=options.rounds,
        device=options.device,
        seed=options.seed,
        watcher=watcher,
    )
    record: dict[str, Any] = {"asked": match.asked, **read_known(options.out, match.asked, "rows")}
    known = record["rows"]

    def keep(name: str, row: dict[str, Any]) -> None:
        known[name] = {"load_average_before": load, **row}
        write_record(options.out, record)

    if ORIGINAL not in known:
        keep(ORIGINAL, {"peer": ORIGINAL, "share": 0.0, **match.measure(match.original)})
    for peer in options.peers:
        wanted = [share for share in options.shares if peer in options.again or _name(peer, share) not in known]
        if len(wanted) < len(options.shares):
            watcher.say(f"{peer}: {len(options.shares) - len(wanted)} rows are in {options.out} already")
        for share, row in _rows(match, peer, wanted):
            keep(_name(peer, share), {"peer": peer, "share": share, "package": versions[peer], **row})
    return record


ORIGINAL = "original"
"""The whole model after the exact rewrites."""


def _name(peer: str, share: float) -> str:
    return f"{peer} {share:g}"


def _rows(match: Match, peer: str, shares: Sequence[float]) -> Iterator[tuple[float, dict[str, Any]]]:
    """(share, row) for each; `refused` says why where the peer can't have a row."""
    build = None
    for share in shares:
        match.watcher.say(f"{peer} at {share:.0%} …")
        try:
            build = build or PEERS[peer](match.given)
            graph_module, seconds = match.timed(partial(build, share))
        except UserError as error:
            match.watcher.say(f"{peer} at {share:.0%}: {error}")
            yield share, {"refused": str(error)}
            continue
        yield share, {**match.measure(graph_module), "seconds": seconds}


def _options(parsed: argparse.Namespace) -> Options:
    try:
        shares = tuple(float(share) for share in parsed.flops.split(","))
    except ValueError as error:
        raise UserError(f"--flops is {parsed.flops!r}: give shares such as 0.1,0.2,0.3,0.4") from error
    return Options(
        model=parsed.model,
        data=parsed.data,
        peers=tuple(dict.fromkeys(parsed.peers.split(","))),
        again=tuple(parsed.again.split(",")) if parsed.again else (),
        shares=shares,
        samples=parsed.samples,
        evaluation=parsed.eval_samples,
        target=parse_target(parsed.target),
        rounds=parsed.rounds,
        device=parsed.device,
        seed=parsed.seed,
        out=parsed.out,
        markdown=parsed.markdown,
        plot=parsed.plot,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description="Deletes equal shares of a model's FLOPs in the ways of several methods and measures what is left.",
        epilog=EXAMPLE,
        formatter_class=HelpFormatter,
    )
    add = parser.add_argument
    add("model", metavar="MODEL", nargs="?", default="demo", help="model file (default: demo)")
    add("--data", help="images (default: what the model names)")
    add(
        "--flops",
        default="0.1,0.2,0.3,0.4,0.5",
        help="shares, of the time for vitfx-time (default: %(default)s)",
    )
    add("--peers", default=",".join(PEERS), help="(default: %(default)s)")
    add("--again", metavar="PEERS", help="of --peers, those whose rows are made again")
    add("--samples", type=int, default=SAMPLES, help="calibration images, the same for all (default: %(default)s)")
    add("--eval-samples", type=int, default=2000, help="evaluation images, or all there are (default: %(default)s)")
    add("--target", default=str(Target()), metavar="DEVICE:batch=N", help="of times (default: %(default)s)")
    add("--rounds", type=int, default=41, help="of timing, in turns with the plain export (default: %(default)s)")
    add("--device", default="auto", help=f"where peers are made: {NAMES} (default: %(default)s)")
    add("--seed", type=int, default=0, help="of samples and random choices (default: %(default)s)")
    add("--out", type=Path, default=Path("peers.json"), help="JSON file (default: %(default)s)")
    add("--markdown", type=Path, help="also write the table as Markdown")
    add("--plot", type=Path, help="also draw top-1 against FLOPs and against speed, as PNG")
    return parser


if __name__ == "__main__":
    sys.exit(main())

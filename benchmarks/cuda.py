"""`python -m benchmarks.cuda OUT/`: what vitfx does on a GPU, in at most eight minutes, without data or network."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.gpu.ledger import FILE, Ledger
from benchmarks.gpu.sizes import LARGE, TINY
from benchmarks.gpu.steps import DONE, NAMES
from benchmarks.gpu.supervise import Asked, supervise
from benchmarks.gpu.table import table
from vitfx.support.console import HelpFormatter, entry_point
from vitfx.support.devices import gpu_names, is_gpu, pick_device
from vitfx.support.errors import UserError, as_options
from vitfx.support.files import writing
from vitfx.support.interrupts import termination_as_interrupt

EXAMPLE = """examples:
  python -m benchmarks.cuda gpu-day/
  python -m benchmarks.cuda gpu-day-2/ --steps deletion,goal --minutes 6
  python -m benchmarks.cuda rehearsal/ --dry"""


@entry_point
def main(arguments: Sequence[str] | None = None) -> int:
    """0 where every step is done, 1 where one is not, 2 for what the user has to change, 130 for Ctrl-C."""
    try:
        return run(*_parse(arguments))
    except UserError as error:
        print(as_options(f"error: {error}"), file=sys.stderr)
        return 2


def run(out: Path, asked: Asked) -> int:
    """Raises UserError where the folder can't be made."""
    with writing(out, "OUT"):
        out.mkdir(parents=True, exist_ok=True)
    sizes = LARGE if is_gpu(torch.device(asked.device)) else TINY
    ledger = Ledger(out, {**asdict(asked), "sizes": asdict(sizes)})
    code = 0
    try:
        with termination_as_interrupt():
            supervise(asked, ledger)
    except KeyboardInterrupt:
        if (name := ledger.running()) is not None:
            ledger.fail(name, "stopped by the user")
        code = 130
    ledger.write()
    if ledger.record["unwritten"]:
        print(ledger.text(), end="")
    print("\n".join(table(ledger.record)))
    if not ledger.record["unwritten"]:
        print(f"written to {ledger.path}", file=sys.stderr)
    done = all(ledger.steps.get(name, {}).get("state") == DONE for name in asked.steps)
    return code or (0 if done and not ledger.record["unwritten"] else 1)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.cuda",
        description="Shows on a GPU, with random models and the demo, that everything works there and what it gains. "
        f"Its steps, in their order: {', '.join(NAMES)}. OUT/cuda.json is written after each.",
        epilog=EXAMPLE,
        formatter_class=HelpFormatter,
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="the folder for cuda.json")
    parser.add_argument("--minutes", type=float, default=8.0, help="the most it may take (default: %(default)g)")
    parser.add_argument("--steps", default=",".join(NAMES), metavar="NAMES", help="only these (default: all)")
    parser.add_argument("--seed", type=int, default=0, help="of weights, images and plans (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="replace an earlier OUT/cuda.json")
    parser.add_argument("--dry", action="store_true", help="rehearse every step on the CPU, with tiny models")
    return parser


def _parse(arguments: Sequence[str] | None) -> tuple[Path, Asked]:
    parsed = build_parser().parse_args(arguments)
    names = [name.strip() for name in parsed.steps.split(",")]
    if unknown := [name for name in names if name not in NAMES]:
        raise UserError(f"--steps {unknown[0]} is not a step: choose from {','.join(NAMES)}")
    if not 0 < parsed.minutes <= 600:
        raise UserError(f"--minutes is {parsed.minutes:g}: give a number above 0, such as 8")
    if not 0 <= parsed.seed < 2**63:
        raise UserError(f"--seed is {parsed.seed}: give 0 or more, and less than 2 to the power of 63")
    if (parsed.out / FILE).exists() and not parsed.force:
        raise UserError(f"{parsed.out / FILE} exists: name another folder, or replace it with --force")
    if not parsed.dry and not gpu_names():
        raise UserError("torch sees no GPU here: run it where there is one, or rehearse it on the CPU with --dry")
    device = "cpu" if parsed.dry else str(pick_device("auto"))
    return parsed.out, Asked(tuple(name for name in NAMES if name in names), parsed.minutes, parsed.seed, device)


if __name__ == "__main__":
    sys.exit(main())

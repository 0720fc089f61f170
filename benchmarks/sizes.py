"""`python -m benchmarks.sizes`: what each stage of pruning costs in memory and time, by model and number of tokens."""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from benchmarks.command import check_least, check_names, check_out, make_parser, read_finished, read_names, run_command
from benchmarks.size_stages import SHAPES, STAGES, Cell, measure
from benchmarks.sizes_table import tables, to_markdown
from vitfx.support.console import entry_point
from vitfx.support.errors import UserError
from vitfx.support.files import write_aside
from vitfx.support.json_files import write_json
from vitfx.support.machine import environment
from vitfx.support.progress import Watcher
from vitfx.support.tables import Table

FORMAT = "vitfx-sizes/1"
_EXAMPLE = """example:
  python -m benchmarks.sizes --models ti,s --tokens 197,577,1025 --out sizes.json --markdown sizes.md

The models are ViTs with random weights and patches of 16 pixels. Each stage runs in a process of its own, once, on one
thread; its time is the processor's, so that other jobs count little. What is there is not measured again: the same
command, or one with more models, tokens or stages, goes on from the file."""


@dataclass(frozen=True)
class SizesOptions:
    """What `benchmarks.sizes` is asked for. Raises UserError."""

    models: tuple[str, ...]
    tokens: tuple[int, ...]
    stages: tuple[str, ...]
    images: int
    seed: int
    out: Path
    markdown: Path | None

    def __post_init__(self) -> None:
        check_names("models", self.models, SHAPES)
        check_names("stages", self.stages, STAGES)
        # A search holds a quarter of them out, and needs three.
        check_least(4, images=self.images)
        check_out("out", self.out)
        check_out("markdown", self.markdown)
        if odd := [count for count in self.tokens if count < 2 or math.isqrt(count - 1) ** 2 != count - 1]:
            raise UserError(f"--tokens {odd[0]} is no square of patches and a class token: give such as 197,577,1025")

    @property
    def cells(self) -> list[Cell]:
        """The small ones first."""
        return [
            Cell(model, tokens, stage, self.images, self.seed)
            for model in SHAPES
            for tokens in sorted(self.tokens)
            for stage in STAGES
            if model in self.models and stage in self.stages
        ]


@entry_point
def main(arguments: Sequence[str] | None = None) -> int:
    return run_command(lambda: _options(arguments), _work)


def _work(options: SizesOptions, watcher: Watcher) -> list[Table]:
    made_with = environment()
    asked = {"images": options.images, "seed": options.seed, "cpu": made_with["cpu"], "torch": made_with["torch"]}
    rows = read_finished(options.out, FORMAT, asked, "rows")["rows"]
    bar = watcher.bar("measuring")
    for done, cell in enumerate(options.cells):
        bar(done, len(options.cells))
        watcher.detail(cell.name)
        if cell.name not in rows:
            rows[cell.name] = asdict(cell) | _alone(cell)
            write_json(options.out, FORMAT, {"asked": asked, "environment": made_with, "rows": rows})
    bar(len(options.cells), len(options.cells))
    chosen = [rows[cell.name] for cell in options.cells]
    if options.markdown is not None:
        write_aside(options.markdown, to_markdown(chosen, made_with))
    return tables(chosen)


def _alone(cell: Cell) -> dict[str, Any]:
    """What a process of its own measures, or why it could not."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        try:
            return pool.submit(measure, cell).result()
        except BrokenProcessPool:
            return {"error": "its process was ended, as the system does where memory runs out"}
        except MemoryError:
            return {"error": "memory ran out"}


def _options(arguments: Sequence[str] | None) -> SizesOptions:
    given = vars(build_parser().parse_args(arguments))
    try:
        tokens = tuple(dict.fromkeys(int(count) for count in given.pop("tokens").split(",")))
    except ValueError as error:
        raise UserError("--tokens is not a list of whole numbers: give such as 197,577,1025") from error
    models, stages = read_names(given.pop("models")), read_names(given.pop("stages"))
    return SizesOptions(models, tokens, stages, **given)


def build_parser() -> argparse.ArgumentParser:
    parser = make_parser("sizes", __doc__ or "", _EXAMPLE)
    add = parser.add_argument
    add("--models", default="ti,s", help=f"of {', '.join(SHAPES)} (default: %(default)s)")
    add("--tokens", default="197,577,1025", help="with the class token (default: %(default)s)")
    add("--stages", default=",".join(STAGES), help="(default: %(default)s)")
    add("--images", type=int, default=32, help="for calibration (default: %(default)s)")
    add("--seed", type=int, default=0, help="of weights and images (default: %(default)s)")
    add("--out", type=Path, default=Path("sizes.json"), help="JSON file (default: %(default)s)")
    add("--markdown", type=Path, help="the same as tables in a text")
    return parser


if __name__ == "__main__":
    sys.exit(main())

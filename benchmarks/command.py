"""What the benchmarks' commands have in common: arguments, their checks, the JSON record, and how they end."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from rich.console import Console, RenderableType

from vitfx.cli.exit_codes import ending
from vitfx.support.console import HelpFormatter
from vitfx.support.devices import NAMES
from vitfx.support.errors import UserError
from vitfx.support.files import write_aside
from vitfx.support.json_files import read_json
from vitfx.support.pictures import has_matplotlib, png_bytes
from vitfx.support.progress import Watcher, console_watcher

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, kw_only=True)
class CommonOptions:
    """What every command takes. Raises UserError."""

    model: str
    data: str | None
    device: str
    seed: int
    out: Path

    def __post_init__(self) -> None:
        check_out("out", self.out)


def make_parser(command: str, description: str, epilog: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"python -m benchmarks.{command}",
        description=description,
        epilog=epilog,
        formatter_class=partial(HelpFormatter, max_help_position=40),
    )


def add_common(parser: argparse.ArgumentParser, out: str, seed: str) -> None:
    """The fields of `CommonOptions`. out: the default file. seed: what the seed is of."""
    parser.usage = "%(prog)s [MODEL] [options]"
    add = parser.add_argument
    add("model", metavar="MODEL", nargs="?", default="demo", help="model file (default: demo)")
    add("--data", help="images (default: the data set that the model names)")
    add("--device", default="auto", help=f"{NAMES} (default: %(default)s)")
    add("--seed", type=int, default=0, help=f"of {seed} (default: %(default)s)")
    add("--out", type=Path, default=Path(out), help="JSON file (default: %(default)s)")


def read_names(text: str) -> tuple[str, ...]:
    """Each name once, in the order given."""
    return tuple(dict.fromkeys(text.split(",")))


def read_shares(text: str) -> tuple[float, ...]:
    """The value of --flops. Raises UserError."""
    try:
        shares = tuple(float(share) for share in text.split(","))
    except ValueError as error:
        raise UserError(f"--flops is {text!r}: give shares such as 0.1,0.2,0.3,0.4") from error
    if not all(0 < share < 1 for share in shares):
        raise UserError(f"--flops is {text}: give shares between 0 and 1, such as 0.1,0.2")
    return shares


def check_names(option: str, names: Iterable[str], known: Iterable[str]) -> None:
    """Raises UserError for the first name that is not known."""
    if unknown := [name for name in names if name not in known]:
        raise UserError(f"--{option} {unknown[0]} is not known: choose from {', '.join(known)}")


def check_least(least: int, **values: int | None) -> None:
    """Raises UserError for the first option below `least`; None stands for a default."""
    for name, value in values.items():
        if value is not None and value < least:
            raise UserError(f"--{name.replace('_', '-')} is {value}: give {least} or more")


def check_out(option: str, path: Path | None) -> None:
    """Raises UserError where the file that an option names can't be written, before hours of work for it."""
    if path is None:
        return
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"--{option} {path} can't be written: name a file in a folder that exists and is writable")


def check_pages(markdown: Path | None, plot: Path | None) -> None:
    """--markdown and --plot. Raises UserError where one can't be written, or matplotlib is missing."""
    check_out("markdown", markdown)
    check_out("plot", plot)
    if plot is not None and not has_matplotlib():
        raise UserError("--plot needs matplotlib: pip install 'vitfx[plot]'")


def write_pages(
    markdown: Path | None, plot: Path | None, table: Callable[[], str], picture: Callable[[], Figure]
) -> None:
    """The same record as Markdown and as a picture, where they were asked for."""
    if markdown is not None:
        write_aside(markdown, table())
    if plot is not None:
        write_aside(plot, png_bytes(picture))


def read_finished(out: Path, format: str, asked: dict[str, Any], *parts: str) -> dict[str, dict[str, Any]]:
    """What an earlier run finished: each of the record's `parts` by name, empty where there is none.

    asked: all that the numbers depend on. Raises UserError where the file is not such a record, or was asked otherwise.
    """
    if not out.exists():
        return {part: {} for part in parts}
    record = read_json(out, format, "give another name with --out")
    if record.get("asked") != asked:
        raise UserError(f"{out} was made with other settings, model, data or machine: give another name with --out")
    if damaged := [part for part in parts if not isinstance(record.get(part), dict)]:
        raise UserError(f"{out} has no {damaged[0]}: give another name with --out")
    return {part: record[part] for part in parts}


class Written(Protocol):
    """Options that name the file that a command writes."""

    @property
    def out(self) -> Path | None: ...


Options = TypeVar("Options", bound=Written)


def run_command(
    read_options: Callable[[], Options],
    work: Callable[[Options, Watcher], Iterable[RenderableType]],
    stopped: Callable[[], str] = lambda: "stopped",
) -> int:
    """The exit code of a command. work: writes the file, and gives what is then printed. stopped: see `ending`."""
    console = Console()

    def command() -> None:
        options = read_options()
        with console_watcher(console) as watcher:
            results = work(options, watcher)
        for result in results:
            console.print(result)
        if options.out is not None:
            console.print(f"written to {options.out}", highlight=False, markup=False, soft_wrap=True)

    return ending(command, stopped)

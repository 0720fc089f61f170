"""Makes the pages of docs/reference/ from the code: commands, files, settings and the Python API."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks import command
from benchmarks.pages import commands, files, python_api, settings
from vitfx.cli.exit_codes import ending
from vitfx.support.console import entry_point
from vitfx.support.files import write_aside, writing

PAGES: Mapping[str, Callable[[], str]] = {
    "commands.md": commands.page,
    "files.md": files.page,
    "settings.md": settings.page,
    "python.md": python_api.page,
}
_ORIGIN = "<!-- Made by python -m benchmarks.reference: change the code and run it again. -->\n\n"
_EXAMPLE = """example:
  python -m benchmarks.reference

The tests compare docs/reference/ with the code: run this after a change of an option, a record or a docstring."""


@entry_point
def main(arguments: Sequence[str] | None = None) -> int:
    out: Path = build_parser().parse_args(arguments).out

    def work() -> None:
        with writing(out, "--out"):
            out.mkdir(parents=True, exist_ok=True)
        for name, page in PAGES.items():
            write_aside(out / name, text_of(page))
        print(f"{out}/ has {', '.join(PAGES)}")

    return ending(work)


def text_of(page: Callable[[], str]) -> str:
    """With a word to those who would edit it."""
    return _ORIGIN + page()


def build_parser() -> argparse.ArgumentParser:
    parser = command.make_parser("reference", __doc__ or "", _EXAMPLE)
    parser.add_argument("--out", type=Path, default=Path("docs/reference"), help="folder (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())

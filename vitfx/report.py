"""Compare runs of vitfx.prune and vitfx.recover, and peers, on one page, an HTML file that opens offline."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from vitfx.cli.exit_codes import ending
from vitfx.reports.pages import compare_page
from vitfx.reports.peers import read_peers
from vitfx.reports.read_runs import RESULTS, Run, read_record, read_run
from vitfx.reports.runtimes import has_runtimes, read_runtimes
from vitfx.support.console import HelpFormatter, entry_point
from vitfx.support.errors import UserError
from vitfx.support.files import check_new_file, write_aside

_EXAMPLE = """example:
  python -m vitfx.report small/ smaller/ retrained/ --out compare.html
  python -m vitfx.report sweep/ rounds/ peers.json

Each folder is one that vitfx.prune or vitfx.recover wrote: its report.json is read, and its sweep.json (--sweep) or
rounds.json (--rounds) where there is one. A file is one that python -m benchmarks.peers --out wrote, each peer is a
curve, or python -m benchmarks.runtimes, bars for every batch and runtime. The page has all models in one table and two
pictures, top-1 and KL against time, with the knees of sweeps marked, and then each run by itself. Times are shares of
each run's own baseline, which was timed in turns with it, so that runs of other hours can be compared; runs of other
machines or other images only as far as those are alike. A single run has its own report.html in its folder.

exit code: 0, or 2 when something you gave can't be used; then nothing is written."""


@entry_point
def main(arguments: Sequence[str] | None = None) -> int:
    options = _parser().parse_args(arguments)

    def work() -> None:
        _check_out(options.out, force=options.force)
        names = zip(options.runs, ends(options.runs), strict=True)
        write_aside(options.out, _page([run for path, name in names for run in _read(path, name)]))
        print(f"{options.out} has the comparison")

    return ending(work)


def ends(paths: Sequence[Path]) -> list[str]:
    """The last parts of the paths, as few as tell them apart."""
    parts = [path.absolute().parts for path in paths]
    for count in range(1, max(map(len, parts))):
        found = [str(Path(*one[-count:])) for one in parts]
        if len(set(found)) == len(set(parts)):
            return found
    return [str(path.absolute()) for path in paths]


def _read(path: Path, name: str) -> tuple[Run, ...]:
    """Raises UserError for anything but the folder of a finished run or a file of results."""
    if path.is_dir():
        return (read_run(path, name),)
    if not path.exists():
        raise UserError(f"{path} is not there: {RESULTS}")
    record = read_record(path, RESULTS)
    return (read_runtimes(record, path, name),) if has_runtimes(record) else read_peers(record, path, name)


def _page(runs: list[Run]) -> str:
    """Raises UserError where a report lacks what the page shows."""
    try:
        return compare_page(runs)
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        for run in runs:
            _try_alone(run)
        raise UserError(f"the runs can't be shown together ({error!r}): give fewer of them") from error


def _try_alone(run: Run) -> None:
    try:
        compare_page([run])
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
        raise UserError(f"{run.name} has a damaged report ({error!r}): give the folder of a finished run") from error


def _check_out(out: Path, *, force: bool) -> None:
    """Raises UserError where the page can't go there."""
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {out} is no .html: give a name that ends in it")
    check_new_file(out, force=force)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m vitfx.report",
        description=(__doc__ or "").partition("\n")[0],
        epilog=_EXAMPLE,
        formatter_class=HelpFormatter,
    )
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        type=Path,
        help="folders of finished runs, files of benchmarks.peers and .runtimes",
    )
    parser.add_argument("--out", type=Path, default=Path("compare.html"), help="the page (default compare.html)")
    parser.add_argument("--force", action="store_true", help="overwrite the page")
    return parser


if __name__ == "__main__":
    sys.exit(main())

"""Compare runs of vitfx.prune and vitfx.recover, and peers, on one page, an HTML file that opens offline."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from vitfx.cli.exit_codes import ending
from vitfx.cli.parser import CommandParser
from vitfx.graph.kinds import KINDS
from vitfx.reports.pages import compare_page
from vitfx.reports.peers import read_peers
from vitfx.reports.read_runs import DAMAGES, Run, read_run
from vitfx.reports.records import PEERS_RECORD, RUNTIMES_RECORD, TASKS_RECORD, PeersRecord, RuntimesRecord, TasksRecord
from vitfx.reports.runtimes import read_runtimes
from vitfx.support.console import entry_point
from vitfx.support.errors import UserError
from vitfx.support.files import check_new_file, write_aside
from vitfx.support.json_files import read_any_json

_RESULTS = "give folders of finished runs, or JSON files of benchmarks.peers, benchmarks.runtimes or tasks"
_FIRST = {
    "input": {
        "runs": "folders of finished runs, or JSON files of benchmarks.peers, benchmarks.runtimes and "
        "vitfx.discover --tasks",
        "--task": "of runs of several tasks show only those whose models answer this",
    },
    "result": {
        "--out": "the page (default compare.html)",
        "--force": "overwrite the page",
    },
}
_EXAMPLES = (
    "python -m vitfx.report demo-pruned-tau0.001/ --out demo.html",
    "python -m vitfx.report small/ smaller/ retrained/ --out compare.html",
    "python -m vitfx.report sweep/ rounds/ peers.json",
)
_NOTES = """\
Folders are those that vitfx.prune or vitfx.recover wrote: report.json is read, and sweep.json (of --sweep) or
rounds.json (of --rounds) where there is one. Files are those of python -m benchmarks.peers --out, which give a curve
for each peer, of python -m benchmarks.runtimes, which give bars for every batch and runtime, and of vitfx.discover
--tasks. The page shows all models in one table and two pictures, top-1 and KL against time, with the knees of sweeps
marked, what each run deleted side by side, and then each run by itself. Times are shares of each run's own baseline,
which was timed in turns with it, so runs made at different hours can be compared; runs on different machines or images
only as far as those are alike. A single run's page is the report.html in its folder.

exit code: 0, or 2 when something you gave can't be used; then nothing is written."""


@entry_point
def main(arguments: Sequence[str] | None = None) -> int:
    options = build_parser().parse_args(arguments)

    def work() -> None:
        _check_out(options.out, force=options.force)
        names = zip(options.runs, ends(options.runs), strict=True)
        runs = [run for path, name in names for run in _read(path, name)]
        for run in runs:
            _check(run)
        write_aside(options.out, compare_page(_of_task(runs, options.task)))
        print(f"{options.out} has the comparison")

    return ending(work)


def ends(paths: Sequence[Path]) -> list[str]:
    """The last parts of each path, as few as tell them all apart."""
    parts = [path.absolute().parts for path in paths]
    for count in range(1, max(map(len, parts))):
        names = [str(Path(*path[-count:])) for path in parts]
        if len(set(names)) == len(set(parts)):
            return names
    return [str(path.absolute()) for path in paths]


def _read(path: Path, name: str) -> tuple[Run, ...]:
    """Raises UserError for anything but the folder of a finished run or a file of results."""
    if path.is_dir():
        return (read_run(path, name),)
    if not path.exists():
        raise UserError(f"{path} is not there: {_RESULTS}")
    format, record = read_any_json(path, (PEERS_RECORD, RUNTIMES_RECORD, TASKS_RECORD), _RESULTS)
    if format == TASKS_RECORD:
        tasks = cast(TasksRecord, record)
        return (Run(name, tasks=tasks, made=tasks),)
    if format == PEERS_RECORD:
        return read_peers(cast(PeersRecord, record), path, name)
    return (read_runtimes(cast(RuntimesRecord, record), path, name),)


def _of_task(runs: Sequence[Run], task: str | None) -> list[Run]:
    """Those whose models answer this, and what has no models; all runs for None. Raises UserError where none does."""
    if task is None:
        return list(runs)
    tasks = sorted({run.task for run in runs if run.task is not None})
    if task not in tasks:
        raise UserError(f"--task {task} is of none of these runs, which are of {' and '.join(tasks)}: leave it out")
    return [run for run in runs if run.task in (None, task)]


def _check(run: Run) -> None:
    """Raises UserError where its report lacks what the page shows."""
    try:
        compare_page([run])
    except DAMAGES as error:
        raise UserError(f"{run.name} has a damaged report ({error!r}): give the folder of a finished run") from error


def _check_out(out: Path, *, force: bool) -> None:
    """Raises UserError where the page can't go there."""
    if out.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--out {out} is not an .html file: give a name that ends in .html")
    check_new_file(out, force=force)


def build_parser() -> CommandParser:
    parser = CommandParser("report", __doc__, usage="RUN ... [options]", first=_FIRST, examples=_EXAMPLES, notes=_NOTES)
    parser.add_argument(
        "runs",
        metavar="RUN",
        nargs="+",
        type=Path,
        help="folders of finished runs, or files of benchmarks.peers, benchmarks.runtimes and vitfx.discover --tasks",
    )
    parser.add_argument("--out", type=Path, default=Path("compare.html"), help="the page (default compare.html)")
    parser.add_argument(
        "--task", choices=KINDS, help="of runs of several tasks show only those whose models answer this"
    )
    parser.add_argument("--force", action="store_true", help="overwrite the page")
    return parser


if __name__ == "__main__":
    sys.exit(main())

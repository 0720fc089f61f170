"""Standard streams in any encoding and of any width, and readers that leave: for every command."""

from __future__ import annotations

import ast
import errno
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path

import pytest
from rich.console import Console

from tests.support.circuits import made_up
from vitfx.support.console import CLOSED_PIPE, entry_point
from vitfx.support.progress import console_watcher

ROOT = Path(__file__).resolve().parents[2]
DOORS = [f"vitfx.{name}" for name in ("discover", "optimize", "prune", "recover", "report", "show", "train")]
COMMANDS = [
    "vitfx.__main__",
    *DOORS,
    *(f"benchmarks.{name}" for name in ("discovery", "methods", "peers", "reference", "runtimes", "training")),
]

WRITER = """
import sys
from pathlib import Path
from rich.console import Console
from vitfx.support.console import entry_point

@entry_point
def main(arguments=None):
    write = Console().print if sys.argv[1] == "rich" else print
    write("first")
    Path(sys.argv[2]).write_text("made")
    for _ in range(20_000):
        write("x" * 50)
    return 3

sys.exit(main())
"""


class Stream(io.TextIOWrapper):
    """A standard stream of some encoding."""

    def __init__(self, encoding: str) -> None:
        self.raw_bytes = io.BytesIO()
        super().__init__(self.raw_bytes, encoding=encoding, write_through=True)

    @property
    def text(self) -> str:
        return self.raw_bytes.getvalue().decode(self.encoding)


@contextmanager
def streams(encoding: str) -> Iterator[tuple[Stream, Stream]]:
    """Standard output and standard error while the block runs."""
    out, err = Stream(encoding), Stream(encoding)
    with redirect_stdout(out), redirect_stderr(err):
        yield out, err


def print_helps() -> None:
    """Every command's, short and full."""
    for name, option in [*((name, "--help") for name in COMMANDS), *((name, "--help-all") for name in DOORS)]:
        try:
            code = import_module(name).main([option])
        except SystemExit as end:
            code = end.code
        assert code == 0, name


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_is_ready_for_its_streams(name: str) -> None:
    assert hasattr(import_module(name).main, "__wrapped__"), f"{name}.main is not a vitfx.support.console.entry_point"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_every_help_can_be_printed(encoding: str) -> None:
    with streams(encoding) as (out, err):
        print_helps()
    tau = "τ" if encoding == "utf-8" else "tau"
    assert f"{tau} of KL divergence" in out.text
    assert err.text == ""


def test_results_and_errors_can_be_printed(tmp_path: Path) -> None:
    circuit = tmp_path / "τ.json"
    circuit.write_text(made_up("qkv").to_json(), encoding="utf-8")
    show = import_module("vitfx.show").main
    with streams("ascii") as (out, err):
        assert show([str(circuit)]) == 0
        assert show([str(tmp_path / "α→ω.json")]) == 2
        assert import_module("vitfx.__main__").main(["é×2"]) == 2
    assert "embed->a0" in out.text
    assert out.text.endswith("tau.svg has the picture\n")
    assert "alpha->omega.json" in err.text
    assert "error: vitfx has no command 'ex2'" in err.text


def _strings() -> Iterator[str]:
    """All that the source has but docstrings and single bytes of names that are no text."""
    for path in (path for folder in ("passes", "vitfx", "benchmarks") for path in (ROOT / folder).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
                yield re.sub("[\ud800-\udfff]", "", node.value)


def test_every_character_that_vitfx_writes_has_a_spelling() -> None:
    characters = sorted({character for text in _strings() for character in text if not character.isascii()})

    @entry_point
    def main() -> int:
        print(*characters, sep="\n")
        return 3

    with streams("ascii") as (out, _):
        assert main() == 3
    spellings = dict(zip(characters, out.text.split("\n")[:-1], strict=True))
    assert [character for character, spelling in spellings.items() if spelling in ("", "?")] == []


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_a_files_name_that_is_no_text_goes_out_as_it_came_in(encoding: str) -> None:
    @entry_point
    def main() -> int:
        print(os.fsdecode(b"a\xff.json"))
        return 0

    with streams(encoding) as (out, _):
        assert main() == 0
    assert out.raw_bytes.getvalue() == b"a\xff.json\n"


def test_the_streams_that_python_opens_in_the_c_locale() -> None:
    environment = os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONIOENCODING", None)
    run = [sys.executable, "-m", "vitfx", "τ"]
    done = subprocess.run(run, env=environment, capture_output=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(b"error: vitfx has no command")


@pytest.mark.parametrize("how", ["rich", "print"])
def test_a_closed_pipe_ends_quietly_with_what_was_made_kept(tmp_path: Path, how: str) -> None:
    run = [sys.executable, "-c", WRITER, how, str(tmp_path / "result")]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(run, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None and process.stderr is not None
        assert process.stdout.readline() == b"first\n"
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == CLOSED_PIPE
    assert (tmp_path / "result").read_text() == "made"


def test_a_reader_that_is_gone_from_the_beginning() -> None:
    """What is short waits in the stream until the end, where Python itself would complain."""
    reading, writing = os.pipe()
    os.close(reading)
    run = [sys.executable, "-m", "vitfx", "--help"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(run, stdout=writing, stderr=subprocess.PIPE, env=environment, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (CLOSED_PIPE, b"")


def test_no_standard_output_at_all() -> None:
    line = f"{shlex.quote(sys.executable)} -m vitfx --help >&-"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(line, shell=True, stderr=subprocess.PIPE, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")
@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize("how", ["rich", "print", "briefly"])
def test_output_to_a_full_disk_ends_in_a_sentence(tmp_path: Path, how: str, buffered: bool) -> None:
    brief = "from vitfx.support.console import entry_point\nexit(entry_point(lambda: print(1) or 0)())"
    run = [sys.executable, "-c", brief if how == "briefly" else WRITER, how, str(tmp_path / "result")]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "" if buffered else "1"}
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(run, stdout=full, stderr=subprocess.PIPE, env=environment, check=False)
    said = "error: standard output, or a temporary file, can't be written (No space left on device): make room"
    assert done.stderr.decode().startswith(said) and done.stderr.count(b"\n") == 1
    assert done.returncode == 2


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device", "a"), OSError(errno.EIO, "oh")])
def test_another_error_of_the_system_is_a_defect(error: OSError) -> None:
    @entry_point
    def main() -> int:
        raise error

    with pytest.raises(OSError, match=str(error.strerror)):
        main()


def test_another_broken_pipe_is_a_defect() -> None:
    @entry_point
    def main() -> int:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        main()


def test_help_fits_a_narrow_console(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    print_helps()
    lines = [line for line in capsys.readouterr().out.splitlines() if len(line) > 40]
    whole = ("python -m", "torchrun", "--edges 200", "usage: ", "[--")
    long = [line for line in lines if not line.strip().startswith(whole) and len(line.split()) > 2]
    assert not long, "\n".join(long)


@pytest.mark.parametrize("width", [40, 80, 160])
def test_numbers_and_words_of_progress_are_whole_on_any_console(width: int) -> None:
    console = Console(width=width, force_terminal=True, color_system=None, file=io.StringIO())
    with console_watcher(console) as watcher:
        watcher.bar("timing sublayers")(300, 1000)
        watcher.detail("epoch 3 of 30, loss 3.212, 812 images/s")
        with console.capture() as capture:
            console.print(watcher._progress.get_renderable())
    shown = capture.get().split()
    assert {"sublayers", "300/1000", "epoch", "3.212,", "images/s"} <= set(shown)

"""Every command ends in a sentence, with nothing half-written, where it is told to stop or can't write."""

from __future__ import annotations

import ctypes
import io
import json
import os
import resource
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from tests.reports.test_prune_text import made
from tests.support.circuits import made_up
from tests.support.prune_runs import artifact, checkpoint
from tests.support.recover_runs import npz, pruned_file
from tests.support.train_runs import SMALL
from vitfx.reports.records import PRUNE_REPORT
from vitfx.support.console import CLOSED_PIPE
from vitfx.support.files import LOCK, UNFINISHED

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and rights as Linux has them")

COMMANDS = {
    "discover": "{model} --samples 16 --paths 4 --eval-samples 40 --device cpu --out {out}/circuit.json",
    "optimize": "{model} --batch 2 --quick --device cpu --out {out}/run",
    "prune": "{model} --samples 16 --paths 4 --tau 0.01 --eval-samples 40 --device cpu --out {out}/run",
    "recover": "{pruned} --teacher {teacher} --data {data} --epochs 1 --batch 16 --checks 2 --eval-samples 16 "
    "--device cpu --out {out}/run",
    "report": "{run} --out {out}/compare.html",
    "show": "{circuit} --out {out}/circuit.svg",
    "train": "--data {data} --config digits --epochs 1 --batch 14 --set training.warm_up=0 --out {out}/run "
    + " ".join(SMALL),
}
Command = Callable[[str, Path], int]
SAID = {"discover": "goes on", "train": "goes on", "recover": "goes on", "prune": "goes on", "optimize": "begins anew"}


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Command:
    """Runs a command by its name, with its results in a folder; returns its exit code."""
    folder = tmp_path_factory.mktemp("given")
    (folder / "run").mkdir()
    (folder / "run" / "report.json").write_text(json.dumps({"format": PRUNE_REPORT, **made(target=None)}))
    (folder / "circuit.json").write_text(made_up("qkv").to_json(), encoding="utf-8")
    given = {
        "model": artifact(folder / "model.pt"), "teacher": checkpoint(folder / "teacher.pt"), "run": folder / "run",
        "pruned": pruned_file(folder / "pruned.pt"), "data": npz(folder, 64), "circuit": folder / "circuit.json",
    }  # fmt: skip

    def run(name: str, out: Path) -> int:
        code: int = import_module(f"vitfx.{name}").main(COMMANDS[name].format(**given, out=out).split())
        return code

    return run


def leftovers(folder: Path) -> list[str]:
    """Files that nobody needs: locks, and what was being written."""
    return [path.name for path in folder.rglob(".*") if path.name.endswith((LOCK, ".partial"))]


@pytest.mark.parametrize("name", COMMANDS)
def test_sigterm(
    name: str, command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """While a file or its folder is made."""
    # What makes files in the end begins with its folder.
    method = "mkdir" if name == "optimize" else "replace"
    whole, came = getattr(Path, method), []

    def interrupted(path: Path, *arguments: Any, **settings: Any) -> Any:
        if not came and arguments[:1] != (path.with_name(UNFINISHED),):
            came.append(path)
            signal.raise_signal(signal.SIGTERM)
        return whole(path, *arguments, **settings)

    monkeypatch.setattr(Path, method, interrupted)
    assert command(name, tmp_path) == 143
    error = capsys.readouterr().err
    assert came and error.startswith("\nstopped") and error.count("\n") == 2
    assert SAID.get(name, "") in error
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "room"), [*((name, 0) for name in COMMANDS), *((name, 300) for name in COMMANDS if name != "optimize")]
)
def test_a_disk_without_room(
    name: str, room: int, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """For files of more bytes than that; what writes an ONNX file has a test beside its own."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, limits[1]))
    try:
        code = command(name, tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith(f"error: {tmp_path}") and error.count("\n") == 1
    assert error.endswith("can't be written (File too large): make room there or name another place with --out\n")
    assert leftovers(tmp_path) == []


@contextmanager
def without_roots_rights() -> Iterator[None]:
    """This thread is held to what files allow, also where it is root's."""
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this thread
    held = (ctypes.c_uint32 * 6)()
    kernel = ctypes.CDLL(None, use_errno=True)
    assert kernel.capget(header, held) == 0
    few = (ctypes.c_uint32 * 6)(*held)
    few[0] &= ~0b110  # CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH
    assert kernel.capset(header, few) == 0
    try:
        yield
    finally:
        assert kernel.capset(header, held) == 0


@pytest.mark.parametrize("name", COMMANDS)
def test_a_folder_that_must_not_be_written(
    name: str, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(0o555)
    try:
        with without_roots_rights():
            with pytest.raises(PermissionError):
                (tmp_path / "file").touch()
            code = command(name, tmp_path)
    finally:
        tmp_path.chmod(0o755)
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith(f"error: {tmp_path}") and "can't be written" in error and error.count("\n") == 1
    assert "with --out" in error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_output_that_nobody_reads(
    name: str, command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with io.TextIOWrapper(os.fdopen(writing, "wb"), line_buffering=True) as stream, redirect_stdout(stream):
        assert command(name, tmp_path) == CLOSED_PIPE
    assert capsys.readouterr().err == ""
    assert leftovers(tmp_path) == []

"""The script that damages files tells what is right from what is wrong, and each loader reads its own whole files."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.fuzz.harness import Loader, fuzz
from tests.fuzz.loaders import LOADERS
from tests.fuzz.mutations import mutate
from vitfx.support.errors import UserError


@pytest.mark.parametrize("name", LOADERS)
def test_whole_files_are_read_and_alike_each_time(name: str, tmp_path: Path) -> None:
    LOADERS[name].write(tmp_path)
    assert LOADERS[name].read(tmp_path) == LOADERS[name].read(tmp_path)
    assert any(path.is_file() for path in tmp_path.glob(LOADERS[name].files))


def write(folder: Path) -> None:
    (folder / "a.txt").write_text("a b c d")


def refuse(folder: Path) -> str:
    if (folder / "a.txt").is_file() and (text := (folder / "a.txt").read_bytes()) == b"a b c d":
        return text.decode()
    raise UserError("it is damaged")


def after(what: Callable[[], object]) -> Callable[[Path], str]:
    """Where the file is damaged."""

    def read(folder: Path) -> str:
        try:
            return refuse(folder)
        except UserError:
            return str(what())

    return read


def raising(error: Exception) -> Callable[[], object]:
    def fail() -> object:
        raise error

    return fail


@pytest.mark.parametrize(
    ("read", "ending"),
    [
        (after(lambda: "a b c d"), None),
        (refuse, None),
        (after(lambda: "others"), "other values without a word"),
        (after(raising(KeyError("x"))), "KeyError in ?: 'x'"),
        (after(raising(UserError("two\nlines"))), "no sentence: 'two\\nlines'"),
        (after(lambda: os.kill(os.getpid(), signal.SIGABRT)), "the process ended (SIGABRT)"),
        (after(lambda: os.write(2, b"Traceback (most recent call last)")), "a traceback is"),
        (after(Path("vitfx-ran").mkdir), "code of the file ran"),
        (after(lambda: torch.empty(2**40)), "RuntimeError in ?: "),
    ],
)
def test_what_ends_otherwise_is_told(read: Callable[[Path], object], ending: str | None) -> None:
    report = fuzz(Loader(write, read), "a test", 5.0, most=12)
    assert report.cases == 12
    if ending is None:
        assert not report.findings
    else:
        assert any(what.startswith(ending) for what in report.findings)


def test_a_loader_that_hangs_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.fuzz.harness.SECONDS", 0.2)
    report = fuzz(Loader(write, after(lambda: time.sleep(60))), "a test", 10.0, most=2)
    assert "hangs" in report.findings


def test_a_case_is_the_same_each_time() -> None:
    loader = Loader(write, after(raising(KeyError("x"))))
    (first, *_) = fuzz(loader, "a test", 5.0, most=12).findings.values()
    assert list(fuzz(loader, "a test", 5.0, only=first.number).findings.values()) == [first]


def test_every_file_can_be_damaged_in_every_way(tmp_path: Path) -> None:
    for name in ("artifact", "journal", "plan", "safetensors", "npz", "tasks"):
        (tmp_path / name).mkdir()
        LOADERS[name].write(tmp_path / name)
        (path, *_) = sorted(path for path in (tmp_path / name).glob(LOADERS[name].files) if path.is_file())
        whole, kinds = path.read_bytes(), set()
        for seed in range(40):
            kinds.add(mutate(path, random.Random(seed))[0])
            path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink(missing_ok=True)
            path.write_bytes(whole)
        assert len(kinds) >= 5, name

"""The list of faults fits the tree, and the script that plants them tells what is caught from what is not."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

from tests.planted_faults.__main__ import plant_all
from tests.planted_faults.faults import ROOT, Fault, FaultError, read_faults

FAULTS = read_faults()


def test_there_are_many_and_each_is_another() -> None:
    assert len(FAULTS) >= 120
    assert len({(fault.file, fault.old, fault.new) for fault in FAULTS}) == len(FAULTS)


@pytest.mark.parametrize("file", sorted({fault.file for fault in FAULTS}))
def test_faults_fit_their_file(file: str) -> None:
    """Their text is there once, and the file with any of them is still Python."""
    text = (ROOT / file).read_text(encoding="utf-8")
    for fault in (fault for fault in FAULTS if fault.file == file):
        planted = fault.planted_in(text)
        assert ast.dump(ast.parse(planted)) != ast.dump(ast.parse(text)), fault.means
        assert fault.tests and all((ROOT / path).is_file() for path in fault.test_files), fault.means
        assert fault.means and not fault.means.endswith("."), fault.means


CODE = "def area(height, width):\n    return height * width\n"
TEST = "from sums import area\n\n\ndef test_area():\n    assert area(2, 2) == 4\n"
CAUGHT = Fault("sums.py", "height * width", "2 * height * width", "twice the area", ("test_sums.py",))
SURVIVES = Fault("sums.py", "height * width", "height + width", "a sum for a product", ("test_sums.py",))
HANGS = Fault("sums.py", "    return", "    while True:\n        pass\n    return", "no end", ("test_sums.py",))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A tree of one module and its test."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "sums.py").write_text(CODE)
    (root / "test_sums.py").write_text(TEST)
    return root


def test_what_is_caught_and_what_survives(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faults, out = [CAUGHT, SURVIVES, HANGS], tmp_path / "out"
    assert plant_all(faults, out, 2.0, root=root, loaded=()) == 1
    said = capsys.readouterr().out
    assert "twice the area: noticed by test_sums.py::test_area" in said
    assert "a sum for a product: SURVIVED" in said
    assert "no end: noticed by time" in said
    assert "| all | 3 | 0 | 2 | 1 | 66.7% |" in said
    assert "- `sums.py`: a sum for a product. **It has no test.**" in (out / "summary.md").read_text()
    assert (root / "sums.py").read_text() == CODE


def test_only_what_is_new_runs_again(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    plant_all([CAUGHT, SURVIVES], out, 2.0, root=root, loaded=(), only="twice")
    assert len(json.loads((out / "results.json").read_text())) == 1
    capsys.readouterr()
    plant_all([CAUGHT, SURVIVES], out, 2.0, root=root, loaded=())
    said = capsys.readouterr().out
    assert "1/1, " in said and "SURVIVED" in said and "noticed by" not in said
    (root / "test_sums.py").write_text(TEST.replace("(2, 2) == 4", "(2, 3) == 6"))
    assert plant_all([CAUGHT, SURVIVES], out, 2.0, root=root, loaded=()) == 0
    assert "SURVIVED" not in capsys.readouterr().out


def test_a_fault_that_may_survive_says_why(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    excused = Fault(*(getattr(SURVIVES, name) for name in ("file", "old", "new", "means", "tests")), "2 + 2 = 2 · 2")
    assert plant_all([excused], tmp_path / "out", 2.0, root=root, loaded=()) == 0
    said = capsys.readouterr().out
    assert "| all | 1 | 1 | 0 | 0 | – |" in said
    assert "Equivalent: 2 + 2 = 2 · 2" in said


@pytest.mark.parametrize(("old", "count"), [("depth", 0), ("height", 2)])
def test_a_text_that_is_not_there_once_is_refused(old: str, count: int, root: Path, tmp_path: Path) -> None:
    fault = Fault("sums.py", old, "", "nothing", ("test_sums.py",))
    with pytest.raises(FaultError, match=rf"sums\.py has {count} times what 'nothing' replaces"):
        plant_all([fault], tmp_path / "out", 2.0, root=root, loaded=())


def test_tests_that_fail_without_a_fault_notice_nothing(root: Path, tmp_path: Path) -> None:
    (root / "test_sums.py").write_text(TEST.replace("4", "5"))
    with pytest.raises(FaultError, match=r"without any fault test_sums\.py::test_area fails: mend that first"):
        plant_all([CAUGHT], tmp_path / "out", 2.0, root=root, loaded=())

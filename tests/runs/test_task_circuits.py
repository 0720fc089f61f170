"""`vitfx.discover --tasks`: a circuit for each task, and what they share."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

import vitfx.discover
import vitfx.report
from tests.support.prune_runs import checkpoint
from vitfx.circuits.circuit import read_circuit
from vitfx.runs.task_circuits import read_tasks
from vitfx.support.errors import UserError

TASKS = 'low = ["0", 1, "2"]\nhigh = "7,8"\neverything = "all"\n'


def discover(folder: Path, *more: str) -> int:
    given = ["--tasks", str(folder / "tasks.toml"), "--out", str(folder / "out.json"), "--device", "cpu"]
    given += ["--tau", "1e-4", "--samples", "16", "--paths", "4", "--eval-samples", "40", "--repeats", "2"]
    return vitfx.discover.main([str(folder / "vit.pt"), *given, *more])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("tasks")
    checkpoint(made / "vit.pt")
    (made / "tasks.toml").write_text(TASKS)
    assert discover(made) == 0
    return made


def record(folder: Path) -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "out.json").read_text())
    return read


def test_a_circuit_for_each_and_what_they_share(folder: Path) -> None:
    found = record(folder)
    assert [task["classes"] for task in found["tasks"]] == [["0", "1", "2"], ["7", "8"], None]
    for task in found["tasks"]:
        circuit = read_circuit(folder / task["file"])
        assert circuit.fingerprint() == task["fingerprint"] and circuit.settings.get("classes") == task["classes"]
        assert len(task["alive"]) == 2 and len(task["heads"]) == 4
        assert task["evaluation"]["images"] <= 40 < task["evaluation"]["images"] + 5
    for matrix in found["overlap"].values():
        assert [len(line) for line in matrix] == [3, 3, 3]
        for row in range(3):
            for column in range(3):
                assert matrix[row][column] == matrix[column][row] and 0 <= matrix[row][column]["mean"] <= 1
                assert (matrix[row][column]["spread"] is None) == (row == column)
    picture = ElementTree.parse(folder / "out.svg").getroot()
    texts = [part.text for part in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert texts.count("everything") == 5 and "overlap of heads" in texts
    page = (folder / "out.html").read_text()
    assert "Circuits of 3 tasks" in page and "low: 0, 1, 2" in page and "<svg" in page


def test_go_on_and_add_one(folder: Path, capsys: Any) -> None:
    first = record(folder)
    (folder / "tasks.toml").write_text(TASKS + 'odd = ["1", "3", "5"]\n')
    assert discover(folder) == 0
    said = capsys.readouterr().out
    assert "out-low.json is there already" in said and "out-everything.json is there already" in said
    assert "task odd, 4 of 4" in said
    again = record(folder)
    assert again["tasks"][:3] == first["tasks"] and again["tasks"][3]["name"] == "odd"
    assert discover(folder, "--tau", "1e-3") == 2
    assert "is of another file of tasks (its tau is 0.0001, not 0.001)" in capsys.readouterr().err


def test_in_a_comparison(folder: Path, tmp_path: Path) -> None:
    assert vitfx.report.main([str(folder / "out.json"), "--out", str(tmp_path / "page.html")]) == 0
    page = (tmp_path / "page.html").read_text()
    assert "Overlap of heads" in page and "Which heads serve which task" in page


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("cats = [", "is not TOML"),
        ("cats = " + "[" * 50_000, "is not TOML"),
        ("cats = " + "1" * 5000, "is not TOML"),
        ('cats = ["a"]\n', "has 1 tasks, which leaves nothing to compare: give two"),
        ('cats = ["a", "b"]\ndogs = []\n', "dogs = [] is no list of classes: give names or numbers"),
        ('cats = ["a", "b"]\ndogs = [true, false]\n', "dogs = [True, False] is no list of classes"),
        ('cats = ["a", "b"]\ndogs = 1.5\n', "dogs = 1.5 is no list of classes"),
        ('cats = "a,b"\n"dogs/x" = "c,d"\n', "names a task 'dogs/x', which no file can be named after"),
    ],
)
def test_one_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    (tmp_path / "tasks.toml").write_text(text)
    with pytest.raises(UserError) as caught:
        read_tasks(tmp_path / "tasks.toml")
    assert sentence in str(caught.value)


def test_what_else_is_refused(folder: Path, tmp_path: Path, capsys: Any) -> None:
    assert discover(folder, "--classes", "1,2") == 2
    assert "error: --tasks names the classes of each task" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"lost\.toml can't be read"):
        read_tasks(tmp_path / "lost.toml")
    (tmp_path / "tasks.toml").write_text('[tasks]\ncats = "a,b"\nall = "all"\n')
    assert read_tasks(tmp_path / "tasks.toml") == {"cats": "a,b", "all": None}

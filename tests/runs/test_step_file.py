"""The record that a run goes on from, and the ranges of its steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.records import json_record
from vitfx.runs.step_file import StepFile, read_range
from vitfx.support.errors import UserError

SETTINGS = {"seed": 0, "target": "cpu", "images": ("a", "b")}


def number(step: dict[str, Any]) -> int:
    return step["number"]


FILE = StepFile("vitfx-test/1", "test", "steps", number, "give another")


def write(path: Path) -> None:
    FILE.write(path, [{"number": 1}, {"number": 2}], SETTINGS, {"cpu": "slow"}, knee=2)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "steps.json"
    assert FILE.read(path, SETTINGS) == ([], {})
    write(path)
    assert FILE.read(path, SETTINGS) == ([1, 2], {"cpu": "slow"})
    assert FILE.read(path, SETTINGS, force=True) == ([], {})
    assert json.loads(path.read_text())["knee"] == 2


@pytest.mark.parametrize(
    ("settings", "difference"),
    [
        (SETTINGS | {"target": "gpu"}, "its target is cpu, not gpu"),
        (SETTINGS | {"more": 1}, "its more is None, not 1"),
        ({"seed": 0, "target": "cpu"}, "its images is ['a', 'b'], not None"),
    ],
)
def test_the_first_difference_is_named(tmp_path: Path, settings: dict[str, Any], difference: str) -> None:
    write(path := tmp_path / "steps.json")
    with pytest.raises(UserError) as refusal:
        FILE.read(path, settings)
    assert str(refusal.value) == f"{path} is of another test ({difference}): give another"


@pytest.mark.parametrize(
    "damage", [{"steps": [{}]}, {"steps": 1}, {"settings": 1}, {"settings": None}, {"steps": [1]}, {"steps": None}]
)
def test_a_damaged_file_is_one_sentence(tmp_path: Path, damage: dict[str, Any]) -> None:
    write(path := tmp_path / "steps.json")
    path.write_text(json.dumps(json_record(path) | damage))
    with pytest.raises(UserError, match=r"is damaged \(.*\): give another"):
        FILE.read(path, SETTINGS)


def test_another_format_is_not_read(tmp_path: Path) -> None:
    write(path := tmp_path / "steps.json")
    other = StepFile("vitfx-other/1", "test", "steps", number, "give another")
    with pytest.raises(UserError, match="is a vitfx-test/1, not a vitfx-other/1: give another"):
        other.read(path, SETTINGS)


def test_a_range() -> None:
    assert read_range("sweep", "1.2:2:5", "1.2:2.0:5", above=1) == (1.2, 2.0, 5)

"""Whose deletions a retrained model has, by the fingerprints that its artifact carries."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.reports.test_prune_text import made
from tests.support.circuits import made_up
from tests.test_report import folder, rounds
from vitfx.reports.read_runs import Run
from vitfx.runs.recover import origin_of

KNOWN = {"model_fingerprint": "teacher's", "circuit_fingerprint": made_up("head").fingerprint()}


def asked(path: Path, provenance: dict[str, str]) -> Run | None:
    model: Any = SimpleNamespace(source=str(path / "pruned.pt"), provenance=provenance)
    teacher: Any = SimpleNamespace(fingerprint="teacher's")
    return origin_of(model, teacher)


def test_the_run_that_made_it_of_the_teacher(tmp_path: Path) -> None:
    run = folder(tmp_path / "run", made(), circuit=made_up("head").to_json())
    found = asked(run, KNOWN)
    assert found is not None and found.prune is not None
    assert found.circuit == made_up("head")


@pytest.mark.parametrize("name", KNOWN)
def test_another_teacher_or_another_circuit(tmp_path: Path, name: str) -> None:
    run = folder(tmp_path / "run", made(), circuit=made_up("head").to_json())
    assert asked(run, KNOWN | {name: "another"}) is None
    assert asked(run, {}) is None


def test_a_folder_that_is_no_run_of_pruning(tmp_path: Path) -> None:
    assert asked(tmp_path, KNOWN) is None
    assert asked(folder(tmp_path / "rounds", rounds=rounds()), KNOWN) is None
    assert asked(folder(tmp_path / "damaged", made(), circuit="{"), KNOWN) is None

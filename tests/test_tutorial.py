"""docs/tutorial.ipynb: its code is whole and calls what is there, its figures are saved, and all of it runs."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Any

import matplotlib
import pytest

from tests.support.command_lines import commands, parse
from tests.test_docs import check_names

NOTEBOOK = Path(__file__).resolve().parents[1] / "docs" / "tutorial.ipynb"


def cells_of(kind: str) -> list[dict[str, Any]]:
    cells: list[dict[str, Any]] = json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == kind]


def code_cells() -> list[dict[str, Any]]:
    return cells_of("code")


def source(cell: dict[str, Any]) -> str:
    return "".join(cell["source"])


def test_its_code_calls_what_is_there() -> None:
    code = "\n".join(map(source, code_cells()))
    check_names(code)
    called = {
        node.func.id
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
    }
    assert {"read_circuit", "picture_bytes"} <= called


def test_the_one_command_can_be_typed_and_is_the_one_that_runs() -> None:
    (line,) = [line for cell in cells_of("markdown") for line in commands(source(cell)) if "mine.pth" in line]
    asked = parse(line)
    (run,) = [source(cell) for cell in code_cells() if "mine.pth --arch" in source(cell)]
    assert asked.target_speedup == 1.5 and f'arch = "{asked.arch}"' in run
    assert f"--data {asked.data} " in run and f"--out {asked.out} " in run


def test_nothing_of_the_machine_is_saved() -> None:
    saved = NOTEBOOK.read_text(encoding="utf-8")
    assert re.findall(r"/(?:home|root|tmp|work|usr|opt)/[^\s\"]*", saved) == []


def test_its_figures_are_saved_and_nothing_failed() -> None:
    outputs = [output for cell in code_cells() for output in cell["outputs"]]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 3
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert [cell["execution_count"] for cell in code_cells()] == list(range(1, len(code_cells()) + 1))


def test_the_readme_shows_what_the_demo_printed_here() -> None:
    """But for the folder, which the command chooses here."""
    (cell,) = [cell for cell in code_cells() if "demo --tau 0.001" in source(cell)]
    printed = re.sub(r"\x1b\[\d*m", "", "".join(map(_text, cell["outputs"])))
    printed = printed.replace("small/", "demo-pruned-tau0.001/")
    known = {" ".join(line.split()) for line in [*printed.splitlines(), "…"]}
    (shown,) = re.findall(
        r"```text\n(.*?)```", (NOTEBOOK.parents[1] / "README.md").read_text(encoding="utf-8"), re.DOTALL
    )
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    assert len(lines) > 10 and set(lines) <= known


def _text(output: dict[str, Any]) -> str:
    return "".join(output.get("text") or output.get("data", {}).get("text/plain", ""))


@pytest.mark.slow
def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    names: dict[str, Any] = {}
    for number, cell in enumerate(code_cells()):
        exec(compile(source(cell), f"cell {number}", "exec"), names)
    small, faster = (json.loads(Path(folder, "report.json").read_text()) for folder in ("small", "faster"))
    assert small["pruned"]["params"] < 0.6 * small["baseline"]["params"]
    assert faster["pruned"]["flops"] < 0.9 * faster["baseline"]["flops"] and faster["pruned"]["accuracy"] > 0.5

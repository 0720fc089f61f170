"""The house rules that a machine can check."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {"passes": {"passes"}, "vitfx": {"passes", "vitfx"}, "benchmarks": {"passes", "vitfx", "benchmarks"}}
FILES = [path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_keeps_the_house(path):
    source = path.read_text()
    tree = ast.parse(source)
    floor = path.relative_to(ROOT).parts[0]
    imported = {name.split(".")[0] for name in _imports(tree)}
    assert imported & {*FLOORS, "tests"} <= FLOORS[floor], "imports point one way"
    assert len(source.splitlines()) <= 300, "asking to be split"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 60, f"{node.name} has {length} lines"
        assert not isinstance(node, ast.Global), "no global state"


def _imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def test_passes_know_neither_files_nor_arguments():
    for path in sorted((ROOT / "passes").rglob("*.py")):
        imported = {name.split(".")[0] for name in _imports(ast.parse(path.read_text()))}
        assert not imported & {"argparse", "pathlib", "os", "io", "onnx", "onnxruntime", "torchvision"}, path.name


@pytest.mark.parametrize(
    "command", [["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy"]], ids=" ".join
)
def test_tools_are_content(command):
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]


def test_ci_runs_the_readmes_test_command():
    command = (ROOT / ".ci" / "run").read_text().splitlines()[-1]
    assert command.endswith("-m pytest")
    assert f"    {command}\n" in (ROOT / "README.md").read_text()


def test_importing_does_nothing():
    code = "import vitfx, sys; assert 'torch' not in sys.modules; print(vitfx.__version__)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip()

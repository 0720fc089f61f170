"""The house rules that a machine can check."""

import ast
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {"passes": {"passes"}, "vitfx": {"passes", "vitfx"}, "benchmarks": {"passes", "vitfx", "benchmarks"}}
WINGS = (
    "support",
    "images",
    "graph",
    "models",
    "deploy",
    "circuits",
    "discovery.basis",
    "discovery.engines",
    "discovery.methods",
    "discovery",
    "pruning",
    "training",
    "recovery",
    "reports",
    "runs",
    "cli",
)
"""From the ground up: a wing imports only those before it."""
DOORS = {"discover", "optimize", "prune", "recover", "report", "show", "train"}
FILES = [path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


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


def _module(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _wing(module):
    """The longest wing that a module is in; None for a door, the package itself and `version`."""
    inside = [wing for wing in WINGS if f"{module}.".startswith(f"vitfx.{wing}.")]
    return max(inside, key=len, default=None)


def test_wings_import_downwards():
    upward = []
    for path in sorted((ROOT / "vitfx").rglob("*.py")):
        if (own := _wing(_module(path))) is None:
            continue
        for name in sorted(set(_imports(ast.parse(path.read_text())))):
            other = _wing(name)
            if other is not None and WINGS.index(other) > WINGS.index(own):
                upward.append(f"{path.relative_to(ROOT)} imports {name}: {own} stands below {other}")
            if name.startswith("vitfx.") and name.split(".")[1] in DOORS:
                upward.append(f"{path.relative_to(ROOT)} imports {name}: a door stands above every wing")
    assert not upward, "\n".join(upward)


def test_every_file_is_in_a_wing():
    outside = {path.stem for path in (ROOT / "vitfx").glob("*.py")}
    assert outside == DOORS | {"__init__", "__main__", "version"}
    for folder in {path.parent for path in (ROOT / "vitfx").rglob("*.py")}:
        assert (ROOT / folder / "__init__.py").exists(), f"{folder} has no __init__.py"
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), f"{folder} says nothing of itself"


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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_name_what_exists(page):
    text = page.read_text()
    links = re.findall(r"\]\((?!https?:)([^)#]+)", text)
    code = re.findall(r"`([^`\s]+)`", text)
    files = [name for name in code if name.endswith(".py") or re.match(r"(passes|vitfx|benchmarks|tests|docs)/", name)]
    missing = [name for name in links if not (page.parent / name).exists()]
    names = {path.name for path in FILES}
    missing += [name for name in files if not (name in names or (ROOT / name).exists())]
    modules = re.findall(r"python -m ((?:vitfx|benchmarks)[.\w]*)", text)
    dotted = [name for name in code if re.fullmatch(r"(passes|vitfx|benchmarks|tests)(\.\w+)+", name)]
    missing += [name for name in {*modules, *dotted} if not _resolves(name)]
    assert not missing


def _resolves(name):
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True

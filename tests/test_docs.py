"""README and docs/: what they print can be typed, and what they link to is there."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import vitfx
from tests.support.checks import assert_equal
from tests.support.command_lines import commands, parse
from tests.support.families import SIZE, images, make
from vitfx.cli.goal_options import read_goal
from vitfx.cli.options import given_settings, make_settings
from vitfx.cli.rounds_options import read_rounds

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_command_can_be_typed(page: Path) -> None:
    for line in commands(page.read_text(encoding="utf-8")):
        options = parse(line)
        if "vitfx.prune" in line:
            asked = read_goal(options, given_settings(options))
            read_rounds(options, None if asked is None else asked.goal)
        if "vitfx.discover" in line:
            make_settings(given_settings(options))


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_options_that_are_named_exist(page: Path) -> None:
    """`vitfx.optimize --passes`, without a model."""
    text = page.read_text(encoding="utf-8").replace("\n", " ")
    for module, options in re.findall(r"`(?:python -m )?((?:vitfx|benchmarks)\.[a-z]+) (--[^`]+)`", text):
        assert set(re.findall(r"--[a-z-]+", options)) <= _options(module)


def _options(module: str) -> set[str]:
    return {
        name for action in importlib.import_module(module).build_parser()._actions for name in action.option_strings
    }


def test_commands_are_seen_where_they_stand() -> None:
    text = (
        "Run `python -m vitfx.show c.json`:\n\n    a && .venv/bin/python -m vitfx.prune demo \\\n        --tau 1\n\n"
        "`vitfx.prune … --tau 2`, unlike `vitfx.prune --tau`"
    )
    expected = [
        ".venv/bin/python -m vitfx.prune demo --tau 1",
        "python -m vitfx.show c.json",
        "python -m vitfx.prune MODEL --tau 2",
    ]
    assert commands(text) == expected
    seen = sum(len(commands(page.read_text(encoding="utf-8"))) for page in PAGES)
    assert seen > 60
    with pytest.raises(AssertionError, match="unrecognized arguments: --hast"):
        parse("python -m vitfx.prune demo --hast")


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_to_sections_lead_somewhere(page: Path) -> None:
    for target, section in re.findall(r"\]\((?!https?:)([^)#]*)#([^)]+)\)", page.read_text(encoding="utf-8")):
        other = (page.parent / target).resolve() if target else page
        assert section in _sections(other), f"{page.name} links to {target}#{section}"


def test_contents_have_every_section() -> None:
    for name in ("benchmarks", "contributing", "how-to"):
        page = ROOT / "docs" / f"{name}.md"
        contents = page.read_text(encoding="utf-8").partition("\n## ")[0]
        deeper = re.findall(r"^##+ (.*)", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(deeper) > 5
        assert _sections(page) - {_anchor(_title(page))} == set(re.findall(r"\]\(#([^)]+)\)", contents)), name


def _title(page: Path) -> str:
    return page.read_text(encoding="utf-8").partition("\n")[0].removeprefix("# ")


def _anchor(heading: str) -> str:
    """As GitHub names it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def _sections(page: Path) -> set[str]:
    return {_anchor(heading) for heading in re.findall(r"^#+ (.*)", page.read_text(encoding="utf-8"), re.MULTILINE)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where `small/` is a pruned model, as the pages have it."""
    place = tmp_path_factory.mktemp("pages")
    vitfx.prune(make("timm"), images(24), torch.arange(24) % 7, tau=2e-4, paths=4, compensate="mean").save(
        place / "small"
    )
    return place


def _block(section: str, number: int = 0) -> str:
    """A block of Python in a section of the how-to."""
    text = (ROOT / "docs" / "how-to.md").read_text(encoding="utf-8").partition(f"\n## {section}\n")[2]
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)[number]


def test_an_artifact_runs_as_the_how_to_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(_block("Deploy"), names)
    assert names["prepare"]["size"] == [SIZE, SIZE] and names["logits"].shape == (1, 7)


def test_an_artifact_runs_on_openvino_as_the_how_to_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    monkeypatch.chdir(folder)
    pixels = images(1)
    names: dict[str, Any] = {"pixels": pixels.numpy()}
    model = vitfx.optimize(make("timm"), images(4), portable=True)
    model.to_onnx("small/pruned.onnx", force=True)
    exec(_block("Deploy", 1), names)
    with torch.no_grad():
        assert_equal(torch.from_numpy(names["logits"]), model.canonical(pixels), 1e-4)


def test_a_circuit_is_read_as_the_how_to_says(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    exec(_block("Read a circuit"), {})
    assert capsys.readouterr().out.count("\n") == 10


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_python_in_pages_calls_what_is_there(page: Path) -> None:
    if page.parent.name == "reference":
        return
    for block in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        check_names(block)


def check_names(code: str) -> None:
    """Parses it, imports what it imports, and looks for what it takes from vitfx."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("vitfx", "passes", "benchmarks"):
            for alias in node.names:
                pkgutil.resolve_name(f"{node.module}.{alias.name}")
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "vitfx":
            assert hasattr(importlib.import_module("vitfx"), node.attr), f"vitfx has no {node.attr}"

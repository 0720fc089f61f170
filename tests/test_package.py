"""What `import vitfx` gives: to Python, to an editor, and to the shell."""

from __future__ import annotations

import configparser
import inspect
import re
import subprocess
import sys
from importlib import import_module
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import vitfx
from vitfx.version import VERSION

ROOT = Path(__file__).resolve().parents[1]
FUNCTIONS = [name for name in vitfx.__all__ if not name.startswith("_") and name != "errors"]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_command_is_a_function_of_the_package_and_a_module(name: str) -> None:
    module = import_module(f"vitfx.{name}")
    assert getattr(vitfx, name) is module
    assert inspect.signature(module) == inspect.signature(getattr(module, name))
    with pytest.raises(TypeError, match=rf"{name}\(\) missing"):
        module()
    assert callable(module.main)
    assert name in dir(vitfx)


def test_errors_can_be_caught() -> None:
    assert vitfx.errors is import_module("vitfx.support.errors") and "errors" in dir(vitfx)
    assert issubclass(vitfx.errors.UserError, Exception)


def test_a_name_that_is_not_there() -> None:
    with pytest.raises(AttributeError, match="module 'vitfx' has no attribute 'prnue'"):
        _ = vitfx.prnue  # type: ignore[attr-defined]  # that is what is tested


def test_an_editor_sees_the_types(tmp_path: Path) -> None:
    """mypy stands for it, on a user's own file."""
    script = tmp_path / "script.py"
    lines = ["import vitfx", *(f"reveal_type(vitfx.{name})" for name in FUNCTIONS), "vitfx.prnue"]
    script.write_text("\n".join(lines) + "\n")
    run = [sys.executable, "-m", "mypy", str(script)]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, check=False)
    *revealed, misspelled, _ = done.stdout.splitlines()
    assert "no attribute" in misspelled
    assert len(revealed) == len(FUNCTIONS)
    for name, line in zip(FUNCTIONS, revealed, strict=True):
        parameters = inspect.signature(getattr(import_module(f"vitfx.{name}"), name)).parameters
        assert 'Revealed type is "def (' in line and "Any, **" not in line
        assert all(f"{parameter}:" in line for parameter in parameters), line


def test_the_console_script_runs_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    name, _, value = config["options.entry_points"]["console_scripts"].strip().partition(" = ")
    main = EntryPoint(name, value, "console_scripts").load()
    assert name == "vitfx"
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"vitfx {VERSION}\n"
    with pytest.raises(SystemExit) as end:
        main(["prune", "--help"])
    assert end.value.code == 0
    assert "usage: python -m vitfx.prune" in capsys.readouterr().out


def test_the_oldest_releases_are_those_that_are_promised() -> None:
    """What tox tests as the oldest is what setup.cfg allows: of torchvision its own release for that torch."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    needed = config["options"]["install_requires"] + config["options.extras_require"]["test"]
    least = dict(re.findall(r"^([\w-]+)>=([\d.]+)", needed + config["options.extras_require"]["plot"], re.MULTILINE))
    tested = dict(re.findall(r"^([\w-]+)==([\d.]+)$", config["testenv:oldest"]["deps"], re.MULTILINE))
    assert tested.pop("torchvision").startswith("0.24.")
    # CPUs without CUDA builds have this one in its place.
    assert least.pop("onnxruntime") == least["onnxruntime-gpu"]
    assert tested.keys() == least.keys()
    assert all(f"{release}.".startswith(f"{least[name]}.") for name, release in tested.items())

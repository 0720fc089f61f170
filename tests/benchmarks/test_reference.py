"""docs/reference/ is what the code says, and says all of it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.pages.classes import fields_of, records_in
from benchmarks.pages.docstrings import markdown_of
from benchmarks.reference import PAGES, main, text_of
from vitfx.circuits.details import Details, Fidelity
from vitfx.pruning.goal import Target
from vitfx.reports.records import Made, PrecisionRecord, PruneReport

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "docs" / "reference"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_up_to_date(name: str) -> None:
    stale = (REFERENCE / name).read_text(encoding="utf-8") != text_of(PAGES[name])
    assert not stale, f"docs/reference/{name} is not what the code says: run python -m benchmarks.reference"


def test_the_folder_has_these_pages_alone() -> None:
    assert {path.name for path in REFERENCE.iterdir()} == set(PAGES)


def test_the_command_writes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--out", str(tmp_path / "new")]) == 0
    assert {path.name: path.read_text() for path in (tmp_path / "new").iterdir()} == {
        path.name: path.read_text() for path in REFERENCE.iterdir()
    }
    assert f"{tmp_path / 'new'}/ has commands.md" in capsys.readouterr().out


def test_every_format_that_the_code_writes_is_described() -> None:
    page = (REFERENCE / "files.md").read_text()
    code = "".join(path.read_text() for folder in ("passes", "vitfx") for path in (ROOT / folder).rglob("*.py"))
    # The one in a docstring is an example.
    formats = set(re.findall(r'"(vitfx-[a-z-]+/\d+)"', code)) - {"vitfx-report/1"}
    assert len(formats) > 10
    assert {name for name in formats if f"`{name}`" not in page} == set()


def test_fields_have_the_types_and_comments_of_the_source() -> None:
    made, *report = fields_of(PruneReport)
    assert made == fields_of(Made)[0] and [field.name for field in report][:3] == ["environment", "baseline", "pruned"]
    quantized = next(field for field in fields_of(PrecisionRecord) if field.name == "quantized")
    assert quantized.to_markdown() == "- `quantized` (`int`, not always there): linear maps"
    precision = next(field for field in fields_of(Target) if field.name == "precision")
    assert (precision.type, precision.default) == ("str", "'fp32'")
    assert precision.meaning.startswith("of every file there; ") and precision.meaning.endswith("in the same")
    held_out = next(field for field in fields_of(Details) if field.name == "held out")
    assert held_out.meaning.startswith("of the same: ")
    assert Fidelity in records_in(Details)


def test_parameters_are_a_list() -> None:
    def function() -> None:
        """What it does.

        a, b: numbers
            of any size.
        c: a word.

        Raises ValueError.
        """

    expected = [
        "What it does.",
        "",
        "- `a`, `b`: numbers",
        "  of any size.",
        "- `c`: a word.",
        "",
        "Raises ValueError.",
    ]
    assert markdown_of(function) == expected

"""Pages for all: colours that can be told apart, what can be focused is seen to be, tables that sort by keyboard."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.support.browser import shown_in_a_browser
from tests.support.pages import read
from vitfx.reports.page import page, section, table
from vitfx.support.tables import Table

STYLE = page("Title", "Lead", [])
THEMES = [
    dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block)) for block in re.findall(r":root \{(.*?)\}", STYLE, re.DOTALL)
]
ROWS = [("a", "9.5%", "1,000"), ("b", "10.0%", "–"), ("c", "–", "20")]


def contrast(one: str, other: str) -> float:
    """WCAG 2's, 1 to 21, of two colours such as #1b1f24."""
    lighter, darker = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def _luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def sorted_table() -> str:
    table_of_rows = table(Table(("run", "top-1", "images"), ROWS, caption="Runs"), sorts=True)
    return page("Title", "Lead", [section("Runs", table_of_rows)], sorts=True)


def test_contrast_is_that_of_the_definition() -> None:
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", THEMES, ids=["light", "dark"])
def test_colours_can_be_told_from_what_is_behind_them(theme: dict[str, str]) -> None:
    for back in (theme["back"], theme["card"]):
        assert min(contrast(theme[name], back) for name in ("ink", "soft")) >= 4.5
    shapes = ["heat", "edge", *(f"c{series}" for series in range(6))]
    assert min(contrast(theme[name], theme["back"]) for name in shapes) >= 3


def test_what_can_be_focused_is_seen_to_be() -> None:
    (focused,) = re.findall(r"\n([^\n]*):focus-visible \{ outline: 2px solid", STYLE)
    assert {name.partition(":")[0].strip() for name in focused.split(",")} == {".wide", "summary", "button"}


def test_only_a_page_that_sorts_has_a_script() -> None:
    assert not read(STYLE).scripts and "script-src" not in STYLE
    (script,) = read(sorted_table()).scripts
    assert 'createElement("button")' in script and "aria-sort" in script
    assert 'class="sorts"' not in table(Table(("a",), [["1"]], caption="Plain"))


def test_a_heading_sorts_its_column_in_a_browser(tmp_path: Path) -> None:
    """Up, then down, by number where all are numbers, with what is not known at the end."""
    script = (
        "const steps = []; const step = (column) => { const head = inner.querySelectorAll('th[scope=col]')[column];"
        " head.querySelector('button').click(); steps.push([head.getAttribute('aria-sort'),"
        " inner.querySelectorAll('[aria-sort]').length,"
        " [...inner.querySelectorAll('tbody th')].map((cell) => cell.textContent).join('')]); };"
        " [1, 1, 2, 0].forEach(step); document.body.innerText = 'steps: ' + JSON.stringify(steps) + ';'"
    )
    shown = shown_in_a_browser(sorted_table(), script, tmp_path)
    found = re.search(r"steps: (.*?);", shown)
    assert found is not None
    assert json.loads(found[1]) == [
        ["ascending", 1, "abc"], ["descending", 1, "bac"], ["ascending", 1, "cab"], ["ascending", 1, "abc"],
    ]  # fmt: skip

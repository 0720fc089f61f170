"""Tables on wide and narrow consoles and in Markdown: every number is whole, and every sign is itself."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from vitfx.support.tables import Table, markdown_report

WIDE = Table(
    ("asked", "measured", "KL", "agreement", "top-1", "points lost", "FLOPs left", "parameters left", ""),
    [
        ("exact rewrites alone", "1.100×", "0.0000", "100.00%", "75.00%", "+0.00", "1.000", "21,622,856", ""),
        ("[b]1.6×[/b] <i>", "1.600×", "0.0500", "90.00%", "70.00%", "+5.00", "0.700", "15,000,111", "knee"),
    ],
    "a [bold] model",
    "on 50 images",
    groups=(0, 1),
)


def printed(table: Table, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), record=True)
    console.print(table)
    return console.export_text().splitlines()


@pytest.mark.parametrize("width", [200, 120, 80, 60, 40, 30])
def test_no_number_is_cut_on_any_console(width: int) -> None:
    lines = printed(WIDE, width)
    assert all(len(line) <= width for line in lines)
    words = " ".join(lines).split()
    for row in WIDE.rows:
        for cell in row[1:]:
            assert not cell or cell in words
    assert "…" not in words
    assert "".join(words).count("[b]1.6×[/b]<i>") == 1
    assert lines[0] == "a [bold] model" and lines[-1] == "on 50 images"


def test_40_columns_have_a_block_for_each_row() -> None:
    lines = [line.rstrip() for line in printed(WIDE, 40)]
    assert lines[1:3] == ["exact rewrites alone", "  measured         1.100×"]
    assert lines[10:12] == ["  measured         1.600×", "  KL               0.0500"]


def test_headings_are_stacked_before_numbers_are_torn_from_their_columns() -> None:
    assert any("points lost" in line for line in printed(WIDE, 160))
    narrow = printed(WIDE, 80)
    assert not any("points lost" in line for line in narrow)
    assert any("1.600×" in line and "15,000,111" in line for line in narrow)


def test_a_table_without_headings_has_no_line_for_them() -> None:
    assert [line.strip() for line in printed(Table(("", ""), [("a", "1")]), 80) if line.strip()] == ["a   1"]


def test_markdown() -> None:
    table = Table(("asked", "peer", "KL"), [("1", "a|b", "0.5")], left=(1,))
    assert table.to_markdown() == ["| asked | peer | KL |", "| ---: | --- | ---: |", "| 1 | a\\|b | 0.5 |"]


def test_a_report_lists_all_that_it_depends_on() -> None:
    text = markdown_report("vit.pt", Table(("", "ms"), [("a", "1")]), ["One."], {"tau": 0.01}, {"torch": "2.14.1"})
    assert text == (
        "# vit.pt\n\n|  | ms |\n| --- | ---: |\n| a | 1 |\n\n- One.\n"
        "\n## Settings\n\n- tau: 0.01\n\n## Environment\n\n- torch: 2.14.1\n"
    )

"""The frame of a page, and its tables."""

from __future__ import annotations

from tests.support.pages import Page, read
from vitfx.reports.page import bullets, details, figure, page, paragraph, section, table

SIGNS = "<b>\"&'"


def test_all_that_is_given_is_text() -> None:
    parts = [
        table([SIGNS], [[SIGNS, SIGNS]], SIGNS),
        bullets([SIGNS]),
        paragraph(SIGNS),
        details(SIGNS, {SIGNS: SIGNS}),
    ]
    found = read(page(SIGNS, SIGNS, [section(SIGNS, *parts, figure("<svg aria-label='x'></svg>", SIGNS))]))
    assert found.told.count(SIGNS) == 14
    assert "b" not in found.tags
    assert found.cells == [[SIGNS], [SIGNS, SIGNS]]


def test_nothing_is_shown_of_nothing() -> None:
    assert section("Empty", "", "") == ""
    assert bullets([]) == details("None", {}) == figure("", "None") == ""
    assert read(page("Title", "Lead", ["", section("Full", paragraph("There."))])).sections == ["Full"]


def test_a_table_scrolls_by_keyboard_too() -> None:
    box = Page(table(["", "a"], [["row", "1"]], "Numbers")).first["div"]
    assert (box["tabindex"], box["role"], box["aria-label"]) == ("0", "region", "Numbers")

"""The frame of a page, and its tables."""

from __future__ import annotations

from markupsafe import Markup

from tests.support.pages import Page, read
from vitfx.reports.page import bullets, details, figure, page, paragraph, section, table
from vitfx.support.svg import drawing, element
from vitfx.support.tables import Table

SIGNS = "<b>\"&'"


def test_all_that_is_given_is_text() -> None:
    parts = [
        table(Table([SIGNS], [[SIGNS, SIGNS]], caption=SIGNS)),
        bullets([SIGNS]),
        paragraph(SIGNS),
        details(SIGNS, {SIGNS: SIGNS}),
    ]
    picture = drawing(1, 1, SIGNS, [element("text", SIGNS, x=SIGNS)])
    found = read(page(SIGNS, SIGNS, [section(SIGNS, *parts, figure(picture, SIGNS))]))
    assert found.told.count(SIGNS) == 14 + 2
    assert found.labels == [SIGNS]
    assert "b" not in found.tags
    assert found.cells == [[SIGNS], [SIGNS, SIGNS]]


def test_nothing_is_shown_of_nothing() -> None:
    assert section("Empty", Markup(""), Markup("")) == ""
    assert bullets([]) == details("None", {}) == figure(Markup(""), "None") == ""
    assert read(page("Title", "Lead", [Markup(""), section("Full", paragraph("There."))])).sections == ["Full"]


def test_words_stand_to_the_left_and_numbers_to_the_right() -> None:
    shown = table(Table(["run", "no.", "on"], [["a", "1", "CPU"]], caption="Runs", left=(0, 2)))
    assert '<th scope="col">no.</th><th scope="col" class="left">on</th>' in shown
    assert '<td>1</td><td class="left">CPU</td>' in shown


def test_a_table_scrolls_by_keyboard_too() -> None:
    box = Page(table(Table(["", "a"], [["row", "1"]], caption="Numbers"))).first["div"]
    assert (box["tabindex"], box["role"], box["aria-label"]) == ("0", "group", "Numbers")

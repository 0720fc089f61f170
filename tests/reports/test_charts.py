"""Charts as SVG: scales, labels, lengths."""

from __future__ import annotations

import re

import pytest

from tests.support.pages import Page
from vitfx.reports.charts import Bar, Curve, bars, digits, plane, short, ticks


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.2, 1.0, (0.2, 0.4, 0.6, 0.8, 1.0)), (0, 10, (0, 2, 4, 6, 8, 10)), (97.1, 98.9, (97, 97.5, 98, 98.5, 99))],
)
def test_ticks_are_round_and_cover(low: float, high: float, expected: tuple[float, ...]) -> None:
    assert ticks(low, high) == pytest.approx(expected)


def test_bars_are_as_long_as_their_values() -> None:
    drawn = bars([("a", [Bar("x", 4.0, "4 ms", 0), Bar("y", 1.0, "1 ms", 1)]), ("b", [Bar("z", 0.5, "½", 0)])], "Bars.")
    lengths = [float(one) for one in re.findall(r'width="([\d.]+)" height="16"', drawn)]
    assert lengths[0] == 4 * lengths[1] == lengths[2], "each group has a scale of its own"
    assert Page(drawn).labels == ["Bars."]
    assert bars([], "None.") == ""


def test_points_lie_where_they_are() -> None:
    curve = Curve("front", [(0.0, 0.0), (5.0, 10.0), (10.0, 0.0)], labels=["p", "q", "<r>"], marked=1)
    drawn = plane([curve], "time", "share", "A plane.")
    centres = [(float(x), float(y)) for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', drawn)]
    assert centres[1][0] == pytest.approx((centres[0][0] + centres[2][0]) / 2)
    assert centres[1][1] < centres[0][1] == centres[2][1]
    assert drawn.count('stroke-width="2"') == 1
    assert {"p", "q", "&lt;r&gt;", "front"} <= set(re.findall(r">([^<>]+)</text>", drawn))
    assert plane([], "time", "share", "Nothing.") == ""


def test_labels_of_points_on_one_another_are_one() -> None:
    same = [Curve(str(number), [(1.0, 100.0)], labels=[str(number)], series=number) for number in range(3)]
    drawn = plane(same, "x", "y", "alt", legend=False, most=100)
    assert ">0, 1, 2</text>" in drawn
    assert max(float(one) for one in re.findall(r'text-anchor="end" class="soft">([\d.]+)<', drawn)) == 100


def test_where_colours_begin_again_points_are_hollow() -> None:
    line = [(0.0, 0.0), (1.0, 1.0)]
    drawn = plane([Curve("a", line, series=1), Curve("b", line, series=7)], "x", "y", "alt")
    assert drawn.count("stroke-dasharray") == 1
    assert drawn.count('fill="var(--c1)"') == 2 + 1, "points and legend of the first"
    assert drawn.count('fill="var(--back)" stroke="var(--c1)"') == 2 + 1


def test_how_numbers_and_names_are_written() -> None:
    assert [digits(value) for value in (0.30000000000000004, 2000.0, 98.5)] == ["0.3", "2,000", "98.5"]
    assert short("a/very/long/path", 8) == "…ng/path"
    assert short("path", 8) == "path"

"""Labels in pictures stand apart."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import combinations

from vitfx.reports.labels import place_labels

_LABEL = re.compile(r'<text x="([\d.]+)"( text-anchor="end")? y="([\d.]+)">(.*)</text>')


def boxes(parts: Sequence[str]) -> list[tuple[float, float, float]]:
    """Left, right, and the base line."""
    found = []
    for part in parts:
        match = _LABEL.fullmatch(part)
        assert match is not None
        x, y, wide = float(match[1]), float(match[3]), 6.5 * len(match[4])
        found.append((x - wide, x, y) if match[2] else (x, x + wide, y))
    return found


def test_a_label_alone_is_above_its_point_and_towards_the_middle() -> None:
    assert place_labels([(100, 50, "a<b")], [(100, 50)], 200, 400, 300) == ['<text x="108.0" y="44.0">a&lt;b</text>']
    assert place_labels([(300, 50, "7")], [(300, 50)], 200, 400, 300) == [
        '<text x="292.0" text-anchor="end" y="44.0">7</text>'
    ]


def test_labels_of_points_near_each_other_do_not_meet() -> None:
    points = [(100.0, 50.0), (112.0, 52.0), (104.0, 62.0)]
    labels = [(*point, str(number)) for number, point in enumerate(points, 20)]
    found = boxes(place_labels(labels, points, 200, 400, 300))
    for (left, right, down), (other, end, base) in combinations(found, 2):
        assert right <= other or end <= left or abs(down - base) >= 12


def test_a_label_stays_in_the_picture() -> None:
    ((left, right, _),) = boxes(place_labels([(390, 50, "a long name")], [(390, 50)], 395, 400, 300))
    assert left >= 0 and right <= 400


def test_a_label_stays_above_the_axis() -> None:
    ((_, _, down),) = boxes(place_labels([(100, 298, "a")], [(100, 298), (112, 290), (88, 290)], 200, 400, 300))
    assert down < 300


def test_where_there_is_no_room_the_first_place_is_taken() -> None:
    crowd = [(x, y) for x in range(0, 400, 6) for y in range(0, 100, 6)]
    assert place_labels([(100, 50, "a")], crowd, 200, 400, 300) == ['<text x="108.0" y="44.0">a</text>']

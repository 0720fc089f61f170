"""vitfx.support.typed: what a file holds is of the types that it should be, or is told by its place."""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict

import pytest

from vitfx.support.typed import TypeMismatch, typed


class Row(TypedDict):
    name: str
    score: float | None
    note: NotRequired[str]


class Table(TypedDict):
    rows: list[Row]
    sizes: dict[str, tuple[int, ...]]


TABLE = {"rows": [{"name": "a", "score": 1}, {"name": "b", "score": None, "note": "x", "more": [1]}], "sizes": {}}


@pytest.mark.parametrize(
    ("value", "hint", "wanted"),
    [
        (True, bool, True),
        (3, int, 3),
        (3, float, 3),
        (2.5, float, 2.5),
        ("x", str, "x"),
        (None, None, None),
        (None, int | None, None),
        ("x", int | str, "x"),
        ([1, 2], list[int], [1, 2]),
        ([1, "a"], tuple[int, str], (1, "a")),
        ([[1, 2.5]], tuple[tuple[int, float], ...], ((1, 2.5),)),
        ({"a": [1]}, dict[str, list[int]], {"a": [1]}),
        ({1: object}, Any, {1: object}),
        (TABLE, Table, TABLE),
    ],
)
def test_what_is_of_its_type_is_taken(value: Any, hint: Any, wanted: Any) -> None:
    taken = typed(value, hint)
    assert taken == wanted and type(taken) is type(wanted)


@pytest.mark.parametrize(
    ("value", "hint", "sentence"),
    [
        (1, bool, "it is 1, not true or false"),
        (True, int, "it is True, not a whole number"),
        (2.0, int, "it is 2.0, not a whole number"),
        (True, float, "it is True, not a number"),
        ("1", float, "it is '1', not a number"),
        (10**400, float, "not a number"),
        (None, str, "it is None, not text"),
        ("x", None, "it is 'x', not null"),
        ([], int | str, r"it is \[\], not a whole number or text"),
        ({}, list[int], "it is {}, not a list"),
        ([1, [2]], list[int], r"it\[1\] is \[2\], not a whole number"),
        ([1], tuple[int, int], "it has 1 parts, not 2"),
        ([], dict[str, int], r"it is \[\], not an object"),
        ({1: 2}, dict[str, int], "not an object"),
        ({"a": "b"}, dict[str, int], "it.a is 'b', not a whole number"),
        ([], Table, r"it is \[\], not an object"),
        ({"rows": []}, Table, "it has no sizes"),
        (TABLE | {"rows": [{"name": "a", "score": "x"}]}, Table, r"it.rows\[0\].score is 'x', not a number"),
        (TABLE | {"rows": [{"name": "a", "score": 1, "note": 7}]}, Table, r"it.rows\[0\].note is 7, not text"),
        (TABLE | {"sizes": {"b\n" * 500: [None]}}, Table, "is None, not a whole number"),
        ("x" * 5000, int, "not a whole number"),
    ],
)
def test_what_is_not_is_told_by_its_place(value: Any, hint: Any, sentence: str) -> None:
    with pytest.raises(TypeMismatch, match=sentence) as caught:
        typed(value, hint, "it")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 500

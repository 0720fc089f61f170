"""Cells stand in rows upwards and do not overlap; edges run upwards from a writer's top to a reader's lower side."""

from __future__ import annotations

from itertools import combinations

import pytest

from tests.support.circuits import made_up
from vitfx.circuits.picture_edges import curve, feeds
from vitfx.circuits.picture_layout import lay_out
from vitfx.circuits.view import read_sublayers


@pytest.mark.parametrize("granularity", ["block", "head", "qkv"])
def test_cells_do_not_overlap_and_are_inside(granularity: str) -> None:
    sublayers = read_sublayers(made_up(granularity, layers=3, heads=12, paths=8))
    layout = lay_out(sublayers, 0.88)
    cells = [layout.boxes[name] for name in ("embed", "logits", *(cell for one in sublayers for cell in one.cells))]
    for one, other in combinations(cells, 2):
        apart = (
            abs(one.x - other.x) >= (one.width + other.width) / 2,
            abs(one.y - other.y) >= (one.height + other.height) / 2,
        )
        assert any(apart)
    assert all(abs(box.x) + box.width / 2 <= layout.width / 2 for box in cells)
    assert all(box.bottom >= 0 and box.top <= layout.height for box in cells)


def test_rows_run_upwards() -> None:
    layout = lay_out(read_sublayers(made_up("head", layers=3)), 0.88)
    heights = [layout.boxes["embed"].y, *layout.rows.values(), layout.boxes["logits"].y]
    assert list(layout.rows) == ["a0", "m0", "a1", "m1", "a2", "m2"]
    assert heights == sorted(heights)


@pytest.mark.parametrize("granularity", ["edge", "qkv"])
def test_edges_run_upwards_from_writer_to_reader(granularity: str) -> None:
    circuit = made_up(granularity)
    layout = lay_out(read_sublayers(circuit), 0.6)
    for decision in circuit.decisions:
        start, *_, end = curve(layout, decision)
        writer, reader = layout.boxes[decision.edge.writer.name], decision.edge.reader
        box = layout.boxes[reader.sublayer if reader.head is None else f"{reader.sublayer}.h{reader.head}"]
        assert (start[1], end[1]) == (writer.top, box.bottom)
        assert start[1] < end[1]
        assert abs(start[0] - writer.x) <= writer.width / 2 and abs(end[0] - box.x) <= box.width / 2


def test_what_edges_feed() -> None:
    assert {feeds(one.edge.reader) for one in made_up("qkv").decisions} == {
        "queries", "keys", "values", "MLPs", "logits",
    }  # fmt: skip
    assert {feeds(one.edge.reader) for one in made_up("edge").decisions} == {"heads", "MLPs", "logits"}

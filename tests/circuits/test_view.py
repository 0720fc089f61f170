"""What is structurally alive, which edges are strongest, and what layers add up to, on circuits worked out by hand."""

from __future__ import annotations

import pytest

from tests.support.circuits import made_up, of_edges
from vitfx.circuits.view import layer_sums, live_edges, place, read_sublayers, structurally_alive, writer_scores
from vitfx.support.errors import UserError


def test_sublayers_are_in_the_streams_order_with_gaps() -> None:
    circuit = of_edges(
        ("m10.p0", "logits", True, 1.0), ("a10.h1", "m10", True, 1.0), ("a10.h0", "m10", True, 1.0),
        ("a2.h0", "m10", True, 1.0), ("embed", "a2.h0", True, 1.0),
    )  # fmt: skip
    assert [(one.name, one.cells) for one in read_sublayers(circuit)] == [
        ("a2", ("a2.h0",)),
        ("a10", ("a10.h0", "a10.h1")),
        ("m10", ("m10.p0",)),
    ]


def test_cells_are_in_order_past_ten() -> None:
    (attention, _) = read_sublayers(made_up("head", layers=1, heads=12))
    assert attention.cells == tuple(f"a0.h{index}" for index in range(12))


@pytest.mark.parametrize("name", ["x3", "a", "3", "a3b", "stream", ""])
def test_other_names_can_not_be_placed(name: str) -> None:
    with pytest.raises(UserError, match="names a sublayer"):
        place(name)


def test_on_the_head_graph_the_removed_are_dead() -> None:
    circuit = of_edges(("embed", "stream", True, 9.0), ("a0.h0", "stream", False, 0.1), ("a0.h1", "stream", True, 2.0))
    assert structurally_alive(circuit) == {"embed", "a0.h1"}


def test_without_the_embedding_all_is_dead() -> None:
    circuit = of_edges(("embed", "stream", False, 9.0), ("a0.h1", "stream", True, 2.0))
    assert structurally_alive(circuit) == frozenset()


EDGES = of_edges(
    ("embed", "a0.h0", True, 0.1),  # alive, through m0
    ("embed", "a0.h1", True, 0.2),  # nobody reads h1
    ("embed", "a0.h2", False, 0.0),  # h2 reads nothing
    ("a0.h0", "m0", True, 0.4),
    ("a0.h1", "m0", False, 0.0),
    ("a0.h2", "m0", True, 0.8),
    ("m0.p0", "logits", True, 1.6),
    ("m0.p1", "logits", False, 3.2),  # a path that nobody reads
    ("a0.h0", "logits", False, 0.0),
    ("a0.h1", "logits", False, 0.0),
    ("a0.h2", "logits", False, 0.0),
    ("embed", "logits", False, 0.0),
    ("embed", "m0", False, 0.0),
)


def test_dead_is_what_lacks_a_way_from_the_image_or_to_the_logits() -> None:
    assert structurally_alive(EDGES) == {"embed", "a0.h0", "m0.p0"}


def test_one_part_of_a_head_is_enough_to_feed_it() -> None:
    circuit = of_edges(
        ("embed", "a0.h0.q", False, 0.0), ("embed", "a0.h0.k", False, 0.0), ("embed", "a0.h0.v", True, 1.0),
        ("embed", "a0.h1.q", False, 0.0), ("a0.h0", "logits", True, 1.0), ("a0.h1", "logits", True, 1.0),
    )  # fmt: skip
    assert structurally_alive(circuit) == {"embed", "a0.h0"}


def test_live_edges_join_the_living_strongest_first() -> None:
    names = [one.edge.name for one in live_edges(EDGES, structurally_alive(EDGES))]
    assert names == ["m0.p0→logits", "a0.h0→m0", "embed→a0.h0"]


def test_scores_below_zero_and_not_a_number_have_no_strength() -> None:
    circuit = of_edges(
        ("embed", "logits", True, 1.0), ("a0.h0", "m0", True, -4.0), ("a0.h0", "logits", True, 3.0),
        ("m0.p0", "logits", True, float("nan")),
    )  # fmt: skip
    assert writer_scores(circuit) == {"embed": 1.0, "a0.h0": 3.0, "m0.p0": 0.0}


def test_scores_of_removed_edges_count_where_a_writer_has_one_edge() -> None:
    assert writer_scores(EDGES)["m0.p1"] == 0.0
    assert writer_scores(of_edges(("a0.h0", "stream", False, 0.5))) == {"a0.h0": 0.5}


def test_sums_between_layers() -> None:
    sums = layer_sums(live_edges(EDGES, structurally_alive(EDGES)))
    assert sums == {(0, "logits"): (1.6, 1), (0, 0): (0.4, 1), ("embed", 0): (0.1, 1)}

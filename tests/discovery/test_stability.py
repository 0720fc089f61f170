"""How much of a circuit other runs find again, counted by hand."""

from __future__ import annotations

from collections.abc import Collection

import pytest

from vitfx.circuits.circuit import LOGITS, Circuit, Decision, Edge, Reader, Writer
from vitfx.discovery.stability import Outcome, death_shares, removal_shares, stability

HEADS = (Writer("a0", 0, (0,)), Writer("a0", 1, (1,)))
HALVES = (Writer("m0", 0, (0, 1)), Writer("m0", 1, (2, 3)))
OTHER_HALVES = (Writer("m0", 0, (0, 2)), Writer("m0", 1, (1, 3)))
EMBED = Writer("embed")


def outcome(paths: tuple[Writer, ...], gone: Collection[str], seed: int = 0) -> Outcome:
    """On the head graph, where a writer is dead when its edge is gone."""
    writers = (EMBED, *HEADS, *paths)
    decisions = tuple(Decision(Edge(one), one.name not in gone, 1.0, 1.0) for one in writers)
    dead = frozenset(one for one in writers if one.name in gone)
    return Outcome(Circuit(decisions, 0.1 * seed, {"seed": seed}), writers, dead)


def test_paths_are_compared_by_their_neurons() -> None:
    runs = [outcome(HALVES, ["m0.p0", "a0.h0"]), outcome(OTHER_HALVES, ["m0.p0"], seed=1)]
    found = stability(runs)
    # Neurons 2, 3 are left of the one and 1, 3 of the other: one of three in common.
    assert found["overlap"]["neurons"] == pytest.approx(1 / 3, abs=1e-6)
    assert found["overlap"]["heads"] == 0.5
    # The embedding and head 1 in both, head 0 in one; a neuron counts for half an edge: (2 + 0.5) / (3 + 1.5).
    assert found["overlap"]["edges"] == pytest.approx(2.5 / 4.5, abs=1e-6)
    assert found["kept_by"] == {"edges": [0.5, 2.0, 2.5], "heads": [0, 1, 1], "neurons": [1, 2, 1]}
    assert found["survival"] == {"embed": 1.0, "a0.h0": 0.5, "a0.h1": 1.0, "m0.p0": 0.25, "m0.p1": 0.75}
    assert found["edges"]["m0.p0→stream"] == 0.25
    assert list(found["edges"]) == ["embed→stream", "a0.h0→stream", "a0.h1→stream", "m0.p0→stream", "m0.p1→stream"]
    assert (found["repeats"], found["seeds"], found["kl"]) == (2, [0, 1], [0.0, 0.1])


def test_the_overlap_is_the_mean_over_pairs() -> None:
    runs = [outcome(HALVES, gone) for gone in ([], [], ["a0.h0"])]
    assert stability(runs)["overlap"]["heads"] == pytest.approx((1 + 0.5 + 0.5) / 3, abs=1e-6)


def test_the_same_circuit_overlaps_whole_even_where_nothing_is_left() -> None:
    same = stability([outcome(HALVES, ["m0.p0", "m0.p1", "a0.h0"])] * 3)
    assert same["overlap"] == {"edges": 1, "heads": 1, "neurons": 1}
    assert same["kept_by"]["neurons"] == [4, 0, 0, 0]


def by_reader(gone: Collection[str]) -> Outcome:
    readers = [Reader("a0", 0), Reader("m0"), Reader(LOGITS)]
    before = {"a0.h0": [EMBED], "m0": [EMBED, HEADS[0]], "logits": [EMBED, HEADS[0], *HALVES]}
    edges = [Edge(writer, reader) for reader in readers for writer in before[reader.name]]
    decisions = tuple(Decision(edge, edge.name not in gone, 1.0, 1.0) for edge in edges)
    return Outcome(Circuit(decisions, 0.0, {"seed": 0}), (EMBED, HEADS[0], *HALVES), frozenset())


def test_edges_between_parts() -> None:
    found = stability([by_reader(["embed→m0", "m0.p0→logits"]), by_reader(["embed→m0", "embed→logits"])])
    assert found["kept_by"]["edges"] == [1, 2, 4]
    assert found["overlap"]["edges"] == pytest.approx(4 / 6, abs=1e-6)
    # Of the embedding's three edges one is kept twice, one once, one never; what is no edge does not count.
    assert found["by_writer"] == {"embed": 0.5, "a0.h0": 1.0, "m0.p0": 0.5, "m0.p1": 1.0}
    assert "edges" not in found


def test_a_whole_sublayer_is_one_edge() -> None:
    writers = (EMBED, Writer("a0", None, (0, 1, 2)), Writer("m0", None, (0, 1)))

    def run(gone: str) -> Outcome:
        decisions = tuple(Decision(Edge(one), one.name != gone, 1.0, 1.0) for one in writers)
        return Outcome(
            Circuit(decisions, 0.0, {"seed": 0}), writers, frozenset(one for one in writers if one.name == gone)
        )

    found = stability([run("a0"), run("m0")])
    assert found["overlap"]["edges"] == pytest.approx(1 / 3, abs=1e-6)
    assert run("a0").dead_of("a") == (1, 1)
    assert run("a0").dead_of("m") == (0, 1)


def test_shares_of_runs_that_removed_an_edge() -> None:
    """Of a path, half of whose neurons are of the other runs' first path, each neuron counts."""
    whole = outcome(HALVES, ["m0.p0"])
    runs = [outcome(OTHER_HALVES, ["m0.p0", "a0.h0"]), outcome(HALVES, ["m0.p0"]), outcome(HALVES, [])]
    shares = removal_shares(whole, runs)
    assert shares == pytest.approx(
        {"embed→stream": 0, "a0.h0→stream": 1 / 3, "a0.h1→stream": 0, "m0.p0→stream": 1.5 / 3, "m0.p1→stream": 0.5 / 3},
        abs=1e-6,
    )
    dead = death_shares(whole, runs)
    assert dead == pytest.approx({"a0.h0": 1 / 3, "a0.h1": 0, "m0.p0": 1.5 / 3, "m0.p1": 0.5 / 3}, abs=1e-6)

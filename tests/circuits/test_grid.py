"""Grids of circuits: what is hollow died, and the strongest is the fullest."""

from __future__ import annotations

import re
from itertools import combinations

import pytest

from passes.plan import DeletionPlan, SublayerDeletion
from tests.support.circuits import made_up, of_edges
from tests.support.pages import Page
from vitfx.circuits.circuit import ATTRIBUTED, BOUND, EMBED, Circuit, Decision, Edge, Writer
from vitfx.circuits.grid import dead_cells, has_costs, has_scores, score_grid, state_grid


def circuit(*, paths: int = 2) -> Circuit:
    """A layer of two heads and of paths with two neurons each; the second of each was removed."""
    writers = [Writer(EMBED), *(Writer("a0", head, (head,)) for head in range(2))]
    writers += [Writer("m0", path, (2 * path, 2 * path + 1)) for path in range(paths)]
    decisions = tuple(Decision(Edge(one), one.index != 1, 10.0 ** -(one.index or 0), None) for one in writers)
    return Circuit(decisions, 0.1, {})


def test_what_died_is_what_the_plan_deletes() -> None:
    assert dead_cells(circuit(), None) == {"a0.h1", "m0.p1"}
    half = DeletionPlan((SublayerDeletion("a0", "head", (0,), 2), SublayerDeletion("m0", "neuron", (0, 2, 3), 4)))
    assert dead_cells(circuit(), half) == {"a0.h0", "m0.p1"}, "a path lives while a neuron of it does"
    whole = DeletionPlan((SublayerDeletion("m0", "neuron", (0, 1, 2, 3), 4),))
    assert dead_cells(circuit(), whole) == {"m0.p0", "m0.p1"}
    assert dead_cells(of_edges(("embed", "logits", True, 1.0), ("a0.h0", "logits", True, 1.0)), None) == {"a0.h0"}


def test_the_grid_of_the_living() -> None:
    drawn = state_grid(circuit(), frozenset({"a0.h1"})).svg()
    (label,) = Page(drawn).labels
    assert label == "Layers upwards: 1 of 2 heads and 0 of 2 MLP paths are dead (hollow)."
    assert drawn.count('class="hollow"') == 4
    assert drawn.count("fill-opacity") == 3
    assert "<title>layer 0, head 1 (a0.h1): dead</title>" in drawn


def test_layers_run_upwards() -> None:
    drawn = state_grid(made_up("head", layers=3), frozenset()).svg()
    assert re.findall(r"layer \d(?=<)", drawn) == ["layer 2", "layer 1", "layer 0"]


def test_scores_shade_over_three_decades() -> None:
    shades = [float(one) for one in re.findall(r'fill-opacity="([\d.]+)"', score_grid(circuit()).svg())]
    assert shades == pytest.approx([1, 2 / 3, 1, 2 / 3], abs=1e-3)
    assert has_scores(circuit())
    cut = Circuit(tuple(Decision(Edge(Writer("a0", 0)), True, 0.0, None, ATTRIBUTED) for _ in range(1)), 0.1, {})
    assert not has_scores(cut)


def test_only_a_cut_for_a_goal_has_costs() -> None:
    found = circuit()
    assert not has_costs(found)
    assert has_costs(Circuit(found.decisions, 0.1, {"method": "goal"}))
    kept = tuple(one for one in found.decisions if one.kept)
    assert not has_costs(Circuit(kept, 0.1, {"method": "goal"}))


def test_very_many_paths_are_drawn_together() -> None:
    drawn = state_grid(circuit(paths=100), frozenset({"m0.p0"})).svg()
    assert drawn.count('class="hollow"') == 2 + 25
    assert 'fill-opacity="0.750"><title>layer 0, MLP path 0 (m0.p0): dead … layer 0, MLP path 3 (m0.p3): alive' in drawn


def test_a_picture_of_its_own_has_names_and_crosses() -> None:
    grid = score_grid(made_up("head", heads=12, paths=4), frozenset({"a0.h1"}), labelled=True)
    drawn = grid.svg()
    assert drawn.count('class="cross') == 1
    labels = re.findall(r'class="(?:light|dark)">([^<]+)</text>', drawn)
    assert len(labels) == 2 * (12 + 4) - 1 and {one.strip("≥") for one in labels} >= {"h0", "h11", "p3"}
    for one, other in combinations(grid.cells, 2):
        assert one.y != other.y or one.x + one.width <= other.x or other.x + other.width <= one.x
    assert all(cell.x >= 0 and cell.x + cell.width <= grid.width for cell in grid.cells)


def test_bounds_are_marked() -> None:
    bound = Circuit((Decision(Edge(Writer("a0", 0)), True, 0.5, None, BOUND),), 0.1, {})
    assert "<title>layer 0, head 0 (a0.h0): ≥ 0.5</title>" in score_grid(bound).svg()


def test_a_whole_sublayer_is_named_with_its_layer() -> None:
    drawn = state_grid(made_up("block", layers=2), frozenset()).svg()
    for title in ("layer 0, attention (a0): alive", "layer 1, MLP (m1): alive"):
        assert f"<title>{title}</title>" in drawn

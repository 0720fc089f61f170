"""Pictures of circuits: what they say, and that the same circuit has the same bytes."""

from __future__ import annotations

import dataclasses
import io
from xml.etree import ElementTree

import pytest
from PIL import Image

from tests.support.circuits import made_up, of_edges, texts
from vitfx.circuits.picture import picture_bytes


def test_the_same_circuit_has_the_same_bytes() -> None:
    for suffix in (".svg", ".png"):
        assert picture_bytes(made_up("qkv"), suffix, 20) == picture_bytes(made_up("qkv"), suffix, 20)
    other = dataclasses.replace(made_up("qkv"), kl=0.5)
    assert picture_bytes(other, ".svg", 20) != picture_bytes(made_up("qkv"), ".svg", 20)


def test_the_users_matplotlib_settings_are_left_alone() -> None:
    import matplotlib as mpl

    plain = picture_bytes(made_up("edge"), ".svg", 20)
    with mpl.rc_context({"font.size": 31, "lines.linewidth": 9, "svg.hashsalt": "mine"}):
        assert picture_bytes(made_up("edge"), ".svg", 20) == plain
        assert mpl.rcParams["font.size"] == 31
        assert mpl.rcParams["svg.hashsalt"] == "mine"


def test_the_dead_are_crossed_out() -> None:
    live = of_edges(("embed", "stream", True, 9.0), ("a0.h0", "stream", True, 0.1), ("a0.h1", "stream", True, 2.0))
    one_dead = of_edges(("embed", "stream", True, 9.0), ("a0.h0", "stream", False, 0.1), ("a0.h1", "stream", True, 2.0))
    assert [picture_bytes(one, ".svg", 0).decode().count('class="cross') for one in (live, one_dead)] == [0, 1]
    pictures = [picture_bytes(one, ".png", 0) for one in (live, one_dead)]
    assert pictures[0] != pictures[1]


def test_names_and_settings_are_text() -> None:
    signs = "<b>\"&'"
    circuit = dataclasses.replace(made_up("head"), settings={"method": signs}, origins={"model": signs})
    said = texts(picture_bytes(circuit, ".svg", 0).decode())
    assert any(one.startswith(signs) for one in said) and any(f"model {signs}" in one for one in said)


def test_no_more_edges_are_drawn_than_asked_for() -> None:
    circuit = made_up("edge")
    said = texts(picture_bytes(circuit, ".svg", 5).decode())
    assert any(one.startswith("the 5 strongest of ") for one in said)
    assert len(picture_bytes(circuit, ".svg", 5)) < len(picture_bytes(circuit, ".svg", 1000))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"remove": 0.005}, "0.005 to remove"),
        ({"tau": None, "goal": "target-speedup", "value": 1.5}, "target-speedup 1.5"),
        ({}, "τ = 0.01"),
    ],
)
def test_the_title_says_what_decided(settings: dict[str, object], said: str) -> None:
    circuit = made_up("head")
    changed = dataclasses.replace(circuit, settings={**circuit.settings, **settings})
    found = texts(picture_bytes(changed, ".svg", 10).decode())
    assert any(said in one for one in found)
    assert ("τ" in said) == any("τ" in one for one in found)


def test_a_dollar_in_a_setting_is_a_dollar() -> None:
    for granularity in ("head", "edge"):
        circuit = dataclasses.replace(made_up(granularity), settings={"method": "a$b$"})
        assert any(one.startswith("a$b$") for one in texts(picture_bytes(circuit, ".svg", 0).decode()))


@pytest.mark.parametrize("granularity", ["head", "edge"])
@pytest.mark.parametrize("scores", [0.0, -1.0, float("inf")])
def test_scores_without_strength_are_drawn(scores: float, granularity: str) -> None:
    circuit = made_up(granularity, layers=1)
    same = tuple(dataclasses.replace(one, score=scores) for one in circuit.decisions)
    assert picture_bytes(dataclasses.replace(circuit, decisions=same), ".svg", 9).startswith(b"<?xml")


def test_a_wide_and_deep_model_stays_within_a_picture() -> None:
    circuit = made_up("head", layers=24, heads=16, paths=64)
    svg = ElementTree.fromstring(picture_bytes(circuit, ".svg", 0).decode())
    assert all(float(svg.attrib[side]) < 45 * 72 for side in ("width", "height"))
    with Image.open(io.BytesIO(picture_bytes(circuit, ".png", 0))) as image:
        assert all(side < 45 * 144 for side in image.size)

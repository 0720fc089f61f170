"""Circuits that are learned: their size, what they are worth beside others of that size, and that seeds decide."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.fx import GraphModule

from tests.support.families import images, make
from vitfx.circuits.circuit import EMBED, LEARNED, Circuit
from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.discovery.basis.journal import NoJournal
from vitfx.discovery.basis.settings import Settings
from vitfx.discovery.methods import edge_pruning as learning
from vitfx.discovery.run import discover
from vitfx.graph.trace import to_canonical
from vitfx.images.image_set import Images
from vitfx.images.splits import open_data
from vitfx.models.checkpoint import load_model
from vitfx.support.progress import Silent


@pytest.fixture(scope="module")
def graph_module() -> GraphModule:
    module = to_canonical(make("vitfx"), images(2)).graph_module
    with torch.no_grad():
        # Sharper than random weights are, so that edges differ in what they matter.
        for parameter in module.parameters():
            parameter.mul_(1.3)
    return module


class Told(Silent):
    def __init__(self) -> None:
        self.sentences: list[str] = []

    def say(self, sentence: str) -> None:
        self.sentences.append(sentence)


def circuit(graph_module: GraphModule, told: Told | None = None, **settings: object) -> Circuit:
    given: dict[str, Any] = {
        "method": "edge-pruning",
        "corruption": "noise",
        "paths": 4,
        "gate_steps": 80,
        "learning_rate": 0.4,
    } | settings
    calibration = Images(images(24), None, tuple(map(str, range(24))))
    asked = Settings(samples=24, **given)
    return discover(graph_module, calibration, asked, {}, NoJournal(), told or Told()).circuit


def removed(found: Circuit) -> float:
    return len(found.removed) / len(found.decisions)


@pytest.mark.parametrize("start", ["eap", "equal"])
@pytest.mark.parametrize("share", [0.4, 0.7])
def test_it_removes_what_is_asked_for(graph_module: GraphModule, share: float, start: str) -> None:
    found = circuit(graph_module, granularity="edge", remove=share, gate_start=start)
    assert removed(found) == pytest.approx(share, abs=0.03)
    assert {decision.basis for decision in found.decisions} == {LEARNED}


@pytest.mark.parametrize(("granularity", "steps", "rate"), [("head", 160, 0.2), ("qkv", 80, 0.4)])
def test_it_beats_random_edges(graph_module: GraphModule, granularity: str, steps: int, rate: float) -> None:
    found = circuit(graph_module, granularity=granularity, remove=0.4, gate_steps=steps, learning_rate=rate)
    assert removed(found) > 0.3
    for seed in range(3):
        other = circuit(graph_module, granularity=granularity, method="random", remove=0.4, seed=seed)
        # With no more edges removed, random ones would lose less.
        assert len(other.removed) <= len(found.removed) + len(found.decisions) * 0.03
        assert found.kl < other.kl


def test_a_seed_gives_one_circuit(graph_module: GraphModule) -> None:
    first, second = (circuit(graph_module, granularity="edge", remove=0.5, seed=3).to_json() for _ in range(2))
    assert first == second
    other = circuit(graph_module, granularity="edge", remove=0.5, seed=4).to_json()
    assert other != first


def test_on_the_head_graph_it_removes_flops_and_keeps_the_embedding(graph_module: GraphModule) -> None:
    found = circuit(graph_module, remove=0.3)
    (embedding,) = (decision for decision in found.decisions if decision.edge.writer.sublayer == EMBED)
    assert embedding.kept
    ranked = circuit(graph_module, method="eap", remove=0.3)
    heads = [sum(edge.writer.sublayer[0] == "a" for edge in each.removed) for each in (found, ranked)]
    paths = [len(each.removed) - count for each, count in zip((found, ranked), heads, strict=True)]
    assert len(found.removed) == pytest.approx(len(ranked.removed), abs=3), (heads, paths)


def test_too_short_a_training_is_told(graph_module: GraphModule) -> None:
    told = Told()
    found = circuit(graph_module, told, granularity="edge", remove=0.9, gate_steps=4)
    assert removed(found) < 0.5
    assert told.sentences[-1].startswith("training closed ")
    assert told.sentences[-1].endswith("% and not 90.0%: give more `gate_steps`")


def test_as_many_go_as_the_gates_expect(graph_module: GraphModule) -> None:
    paths = {name: [range(graph_module.get_submodule(name).units)] for name in ("m0", "m1", "m2")}
    graph = EdgeGraph(graph_module, paths, "block")
    log_alpha = torch.tensor([9.0, -9.0, 9.0, -9.0, -2.0, -1.5, 9.0], dtype=torch.float64)
    shares = torch.tensor([0.0, 0.1, 0.2, 0.3, 0.1, 0.1, 0.2], dtype=torch.float64)
    # Of 0.1 each, the two in the middle are expected to go with P = 0.60 and 0.48.
    decisions = learning._binary(graph, log_alpha, shares)
    gone = {decision.edge.name for decision in decisions if not decision.kept}
    assert gone == {graph.edges()[at].name for at in (1, 3, 4)}
    assert [decision.score for decision in decisions] == sorted(decision.score for decision in decisions)


def test_attributions_start_gates_by_their_rank() -> None:
    low, high = learning.START
    start = learning._start([0.5, 0.1, 0.1, 7.0])
    assert start.tolist() == pytest.approx([low + (high - low) * 2 / 3, low, low, high])
    assert learning._start([0.0, 0.0]).tolist() == [low, low]


@pytest.mark.slow
@pytest.mark.parametrize(("granularity", "share"), [("head", 0.5), ("qkv", 0.9)])
def test_on_the_demo_it_beats_eap(granularity: str, share: float) -> None:
    """With as many edges removed, up to one."""
    model = load_model("demo")
    calibration = open_data("digits", model.preprocess).calibration.sample(64, 0).load()
    graph_module = to_canonical(model.module, calibration.pixels[:2]).graph_module

    def find(**settings: object) -> Circuit:
        asked = Settings(samples=64, granularity=granularity, **settings)
        return discover(graph_module, calibration, asked, {}, NoJournal(), Silent()).circuit

    found = find(method="edge-pruning", remove=share, gate_steps=80, learning_rate=0.5)
    part = removed(found)
    if granularity == "head":
        # There it is a share of the FLOPs.
        part = next(
            part / 200
            for part in range(200)
            if len(find(method="eap", remove=part / 200).removed) >= len(found.removed)
        )
    ranked = find(method="eap", remove=part)
    assert abs(len(ranked.removed) - len(found.removed)) <= 1
    assert removed(found) == pytest.approx(share, abs=0.03)
    assert found.kl < ranked.kl

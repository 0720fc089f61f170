"""Curves of faithfulness: which circuits are run, what their metrics are, and the areas."""

import pytest
import torch

from benchmarks.curves import FRACTIONS, Evaluator, area, connected, faithfulness
from benchmarks.planted import CIRCUIT, PATHS, write_planted
from benchmarks.rank_checks import auroc, exact_costs, rank_correlation
from benchmarks.subject import open_subject
from tests.support.benchmark_folder import CPU
from vitfx.discovery.basis.settings import Settings
from vitfx.graph.divergence import kl_divergence
from vitfx.support.errors import UserError
from vitfx.support.progress import Silent


@pytest.fixture(scope="module", params=["head", "edge"])
def subject(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    write_planted(folder, 120)
    settings = Settings(samples=20, paths=PATHS, granularity=request.param)
    return open_subject(str(folder / "planted.pt"), None, settings, CPU, Silent())


@pytest.fixture(scope="module")
def evaluator(subject):
    return Evaluator(subject.graph, subject.setup.calibration, subject.setup.reference)


def test_areas_are_trapezoids_over_linear_k():
    assert area([1.0] * len(FRACTIONS)) == pytest.approx(0.999)
    assert area([0.0] * (len(FRACTIONS) - 1) + [1.0]) == pytest.approx(0.25)
    assert area([0.0] * (len(FRACTIONS) - 2) + [1.0, 1.0]) == pytest.approx(0.15 + 0.5)


def test_faithfulness_is_one_for_the_whole_model_and_zero_for_nothing():
    assert faithfulness([3.0, -1.0, 1.0, 5.0], whole=3.0, empty=-1.0) == [1.0, 0.0, 0.5, 1.5]


def edges_of(graph, *names):
    return {edge for edge in graph.edges() if edge.name in names}


def test_only_edges_between_image_and_logits_are_connected(subject):
    graph = subject.graph
    if graph.granularity == "head":
        assert connected(graph, edges_of(graph, "a0.h0→stream")) == frozenset()
        kept = edges_of(graph, "embed→stream", "a0.h0→stream")
        assert connected(graph, kept) == kept
        return
    whole = edges_of(graph, *CIRCUIT["edge"])
    assert connected(graph, whole) == whole
    # a1.h2 reads the image, but nobody reads it; a2.h1 is read, but reads nothing; a0.h1 loses its reader with m0.
    kept = edges_of(graph, "embed→a1.h2", "a2.h1→logits", "embed→a0.h0", "a0.h0→logits", "embed→a0.h1", "a0.h1→m0")
    assert connected(graph, kept) == edges_of(graph, "embed→a0.h0", "a0.h0→logits")


@torch.no_grad()
def test_metrics_are_the_oracles(subject, evaluator):
    graph, calibration = subject.graph, subject.setup.calibration
    removed = [*edges_of(graph, "a0.h0→stream", "a0.h0→m0")]
    whole, counterfactual = graph.run(calibration.clean), graph.run(calibration.corrupted)
    circuit = graph.run(calibration.clean, removed, subject.setup.reference)
    assert evaluator.values(removed)["kl"] == pytest.approx(-float(kl_divergence(whole, circuit).mean()), rel=1e-5)
    other = counterfactual.argmax(dim=1)
    assert bool((other != whole.argmax(dim=1)).all()), "the planted model is always right, and swaps change the class"
    rows = torch.arange(len(whole))
    difference = circuit[rows, calibration.labels] - circuit[rows, other]
    assert evaluator.values(removed)["logit-difference"] == pytest.approx(float(difference.mean()), rel=1e-5)
    assert evaluator.whole["kl"] == pytest.approx(0, abs=1e-9)
    assert evaluator.empty == evaluator.values(graph.edges())


def test_a_curve_takes_the_first_edges_and_ends_with_the_whole_model(subject, evaluator):
    names = [edge.name for edge in subject.graph.edges()]
    truth = CIRCUIT[subject.graph.granularity]
    scores = {name: (1.0 + index / 100 if name in truth else 0.0) for index, name in enumerate(names)}
    curve = evaluator.curve(scores, "signed", lambda done, total: None)
    assert curve.edges == [int(fraction * len(names)) for fraction in FRACTIONS]
    assert curve.edges[-1] == curve.connected[-1] == len(names)
    assert all(kept <= taken for kept, taken in zip(curve.connected, curve.edges, strict=True))
    last = {name: values[-1] for name, values in curve.values.items()}
    assert last == evaluator.whole
    enough = next(place for place, taken in enumerate(curve.edges) if taken >= len(truth))
    assert curve.values["kl"][enough] == pytest.approx(0, abs=1e-4)
    nothing = next(place for place, kept in enumerate(curve.connected) if not kept)
    assert {name: values[nothing] for name, values in curve.values.items()} == evaluator.empty


def test_on_the_head_graph_the_embedding_comes_first(subject, evaluator):
    scores = {edge.name: float(place) for place, edge in enumerate(subject.graph.edges())}
    scores |= {name: -1.0 for name in scores if name.startswith("embed")}
    curve = evaluator.curve(scores, "signed", lambda done, total: None)
    first = next(place for place, taken in enumerate(curve.edges) if taken)
    connected_first = curve.edges[first] if subject.graph.granularity == "head" else 0
    assert curve.connected[first] == connected_first


def test_signed_order_puts_harmful_edges_last_and_magnitude_first(subject, evaluator):
    names = [edge.name for edge in subject.graph.edges()]
    circuit = frozenset(CIRCUIT[subject.graph.granularity])
    harmful = {name: -2.0 if name in circuit else 1.0 for name in names}
    areas = evaluator.measure(harmful, lambda done, total: None)["areas"]["kl"]
    helpful = evaluator.measure({name: abs(score) for name, score in harmful.items()}, lambda done, total: None)
    assert areas["CPR"] < 0.5 < helpful["areas"]["kl"]["CPR"]
    assert areas["CMD"] == helpful["areas"]["kl"]["CMD"] < 0.5


@torch.no_grad()
def test_exact_costs_are_of_each_edge_alone(subject, evaluator):
    costs = exact_costs(evaluator, 5, 0, lambda done, total: None)
    assert [len(of_kind) for of_kind in costs.values()] == [5, 5]
    assert all(name.startswith("a") for name in costs["heads"]) and all(name.startswith("m") for name in costs["paths"])
    clean = subject.setup.calibration.clean
    for name, cost in (costs["heads"] | costs["paths"]).items():
        without = subject.graph.run(clean, edges_of(subject.graph, name), subject.setup.reference)
        assert cost == pytest.approx(float(kl_divergence(subject.graph.run(clean), without).mean()), rel=1e-4, abs=1e-8)
    assert costs != exact_costs(evaluator, 5, 1, lambda done, total: None)


def test_rank_correlations_are_of_magnitudes():
    costs = {"a": 0.1, "b": 0.2, "c": 0.3, "d": 0.4}
    assert rank_correlation({"a": 1.0, "b": -2.0, "c": 3.0, "d": -5.0, "other": 9.0}, costs) == 1
    assert rank_correlation({"a": 1.0, "b": 0.5, "c": 0.2, "d": 0.1}, costs) == -1
    assert rank_correlation(dict.fromkeys(costs, 1.0), costs) is None
    assert rank_correlation({}, {}) is None


def test_auroc_counts_ties_half():
    scores = {"a": -3.0, "b": 1.0, "c": 1.0, "d": 0.0}
    assert auroc(scores, frozenset({"a", "b"})) == (2 + 1.5) / 4


def test_an_ablation_that_changes_nothing_is_told(subject):
    own = {name: value.clone() for name, value in subject.setup.reference.items()}
    evaluator = Evaluator(subject.graph, subject.setup.calibration, own)
    evaluator._known[frozenset(subject.graph.edges())] = dict(evaluator.whole)
    with pytest.raises(UserError, match="logit-difference is the same with every edge ablated"):
        _ = evaluator.empty

"""What all attributions share: batches and shares of the images change nothing."""

from dataclasses import replace

import pytest
import torch

from tests.support.gated import assert_scores, make_calibration, make_graph
from vitfx.discovery.basis.ablation import make_reference
from vitfx.discovery.methods.attribution import eap, eap_ig, eap_ig_activations, fisher, relp, taylor
from vitfx.discovery.methods.edge_gradients import by_name, mean_of_edges
from vitfx.support.processes import Alone

METHODS = {
    "fisher": fisher,
    "eap": lambda *inputs: eap(*inputs, metric="logit-difference"),
    "relp": lambda *inputs: relp(*inputs, metric="loss"),
    "eap-ig": lambda *inputs: eap_ig(*inputs, metric="kl", steps=2),
    "eap-ig-activations": lambda *inputs: eap_ig_activations(*inputs, metric="kl", steps=2),
    "taylor": lambda graph, calibration, _: taylor(graph, calibration),
}


class Half:
    """One of two processes that run one after the other: the second knows what the first had."""

    world = 2

    def __init__(self, rank, others):
        self.rank, self.others = rank, others

    def sum(self, value):
        if self.rank == 0:
            self.others.append(value)
            return value
        return value + self.others.pop(0)

    def broadcast(self, value):
        return value


def _part(calibration, images, total, share):
    parts = {name: getattr(calibration, name)[images] for name in ("clean", "corrupted", "labels", "draws")}
    return replace(calibration, **parts, total=total, share=share)


@pytest.mark.parametrize("ablation", ["mean", "resample"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("count", [5, 1])
def test_two_shares_give_the_scores_of_one_process(method, ablation, count):
    """With one image the second process has none."""
    graph, whole = make_graph("edge"), _part(make_calibration(5), slice(count), count, Alone())
    reference = make_reference(graph, whole.corrupted, ablation)
    expected = METHODS[method](graph, whole, reference)
    others = []
    for rank in (0, 1):
        mine = slice(rank, None, 2)
        share = _part(whole, mine, count, Half(rank, others))
        here = {name: value[mine] if value.dim() == 3 else value for name, value in reference.items()}
        got = METHODS[method](graph, share, here)
    assert not others
    assert_scores(got, expected, 1e-9)


@pytest.mark.parametrize("method", METHODS)
def test_scores_do_not_depend_on_the_batch(method, monkeypatch):
    graph, calibration = make_graph("qkv"), make_calibration(5)
    reference = make_reference(graph, calibration.corrupted, "resample")
    expected = METHODS[method](graph, calibration, reference)
    monkeypatch.setattr("vitfx.discovery.methods.edge_gradients.BATCH", 2)
    assert_scores(METHODS[method](graph, calibration, reference), expected, 1e-9)


@pytest.mark.parametrize(("numbers", "batch"), [(3, 3), (2, 2), (0, 1), (100, 5)])
def test_batches_fit_in_memory_and_progress_counts_images(numbers, batch, monkeypatch):
    graph, calibration = make_graph("edge"), make_calibration(5)
    monkeypatch.setattr("vitfx.discovery.methods.edge_gradients._NUMBERS", numbers * len(graph.writers) * 17 * 32)
    seen, sizes = [], []

    def of_batch(images):
        sizes.append(images.stop - images.start)
        return calibration.clean[images].sum(dim=(1, 2, 3))[:, None].expand(-1, len(graph.edges()))

    found = mean_of_edges(graph, calibration, of_batch, lambda done, total: seen.append((done, total)))
    assert sizes[0] == batch
    assert sum(sizes) == 5
    assert seen[-1] == (5, 5)
    assert len(seen) == len(sizes)
    torch.testing.assert_close(found, calibration.clean.sum(dim=(1, 2, 3)).mean().expand_as(found))


def test_names_go_with_scores_in_the_graphs_order():
    graph = make_graph("edge")
    scores = by_name(graph, torch.arange(len(graph.edges()), dtype=torch.float64))
    assert [scores[edge.name] for edge in graph.edges()] == list(range(len(graph.edges())))


@pytest.mark.parametrize("granularity", ["head", "edge"])
def test_frozen_parameters_and_no_grad_around_change_nothing(granularity):
    graph, calibration = make_graph(granularity), make_calibration(3)
    reference = make_reference(graph, calibration.corrupted, "mean")
    expected = eap(graph, calibration, reference, metric="loss")
    for stage in graph.stages:
        stage.module.requires_grad_(False)
        if stage.norm is not None:
            stage.norm.requires_grad_(False)
    with torch.no_grad():
        assert eap(graph, calibration, reference, metric="loss") == expected

"""What README says of attributions, on a trained model: the Fisher score ranks edges as exact ablation does, alone."""

import pytest
import torch
from scipy.stats import spearmanr

from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.discovery.basis.ablation import make_reference
from vitfx.discovery.basis.calibration import calibrate
from vitfx.discovery.methods.attribution import eap, random_scores
from vitfx.discovery.methods.unit_importance import fisher_scores, group_paths
from vitfx.discovery.run import whole_mlps
from vitfx.graph.divergence import kl_divergence
from vitfx.graph.trace import to_canonical
from vitfx.images.splits import open_data
from vitfx.models.checkpoint import load_model


@pytest.fixture(scope="module")
def measured():
    """The head graph of the demo model, its calibration, and each edge's exact cost when it alone is removed."""
    model = load_model("demo")
    images = open_data("digits", model.preprocess, model.classes).calibration.sample(48, 0).load()
    graph_module = to_canonical(model.module, images.pixels[:2]).graph_module
    calibration = calibrate(images, "swap", 0, torch.device("cpu"))
    coarse = EdgeGraph(graph_module, whole_mlps(graph_module))
    reference = make_reference(coarse, calibration.corrupted, "mean")
    neurons = fisher_scores(coarse.stages, calibration, reference)
    graph = EdgeGraph(graph_module, group_paths(coarse.stages, neurons, 8))
    with torch.no_grad():
        clean = graph.run(calibration.clean)
        costs = {
            edge.name: float(kl_divergence(clean, graph.run(calibration.clean, [edge], reference)).mean())
            for edge in graph.edges()
        }
    return graph, calibration, reference, costs


def spearman(scores, costs, letter):
    """Over the edges of heads ("a") or paths ("m")."""
    names = [name for name in costs if name.startswith(letter)]
    return float(spearmanr([scores[name] for name in names], [costs[name] for name in names]).statistic)


@pytest.mark.parametrize("letter", ["a", "m"])
def test_fisher_ranks_as_exact_ablation_does(measured, letter):
    graph, calibration, reference, costs = measured
    assert spearman(eap(graph, calibration, reference, metric="kl"), costs, letter) > 0.7


def test_and_signed_first_order_scores_or_chance_do_so_less(measured):
    graph, calibration, reference, costs = measured
    fisher = eap(graph, calibration, reference, metric="kl")
    loss = eap(graph, calibration, reference, metric="loss")
    assert spearman(fisher, costs, "a") > spearman(loss, costs, "a")
    assert abs(spearman(random_scores(graph, 0), costs, "m")) < 0.4

import pytest
import torch
from torch.nn import functional as F

from tests.support.checks import canonical
from tests.support.families import images
from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.discovery.basis.ablation import make_reference
from vitfx.discovery.basis.fidelity import fidelity

PATHS = {name: [range(0, 48, 2), range(1, 48, 2)] for name in ("m0", "m1", "m2")}
PIXELS = images(20, torch.float64)


@pytest.mark.parametrize(("granularity", "ablation"), [("head", "mean"), ("qkv", "resample"), ("edge", "zero")])
def test_figures_are_those_of_the_edge_graph(granularity, ablation):
    graph = EdgeGraph(canonical(), PATHS, granularity)
    reference = make_reference(graph, PIXELS.flip(0), ablation)
    removed = graph.edges()[::3]
    with torch.no_grad():
        whole, circuit = graph.run(PIXELS), graph.run(PIXELS, removed, reference)
    labels = torch.where(torch.arange(20) % 4 == 0, circuit.argmax(1), whole.argmax(1))
    found = fidelity(graph, removed, reference, PIXELS, labels)
    expected = F.kl_div(circuit.log_softmax(-1), whole.log_softmax(-1), log_target=True, reduction="batchmean")
    assert found["kl"] == pytest.approx(float(expected), rel=1e-9)
    assert found["agreement"] == pytest.approx(float((whole.argmax(1) == circuit.argmax(1)).double().mean()))
    assert found["accuracy"] == pytest.approx(float((labels == circuit.argmax(1)).double().mean()))
    assert found["whole_accuracy"] == pytest.approx(float((labels == whole.argmax(1)).double().mean()))
    assert found["images"] == 20


def test_without_labels_there_is_no_accuracy():
    graph = EdgeGraph(canonical(), PATHS)
    found = fidelity(graph, [], {}, PIXELS)
    assert (found["accuracy"], found["whole_accuracy"]) == (None, None)
    assert found["kl"] == 0
    assert found["agreement"] == 1

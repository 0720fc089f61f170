"""The planted circuit: that it is the model's, exactly, and that methods find it."""

import pytest
import torch
from sklearn.metrics import roc_auc_score

from benchmarks.planted import CIRCUIT, PATHS, main, planted_images, planted_model, write_planted
from benchmarks.rankings import rank_edges, read_method
from benchmarks.subject import open_subject
from tests.support.benchmark_folder import CPU
from vitfx.circuits.circuit import EMBED
from vitfx.discovery.basis.settings import ABLATIONS, Settings
from vitfx.discovery.run import prepare
from vitfx.graph.divergence import kl_divergence
from vitfx.support.json_files import read_json
from vitfx.support.progress import Silent

SAMPLES = 48
FINDING = ("acdc", "eap-acdc", "edge-pruning", "eap", "relp", "eap-ig", "eap-ig-activations", "ensemble")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("planted")
    assert main([str(folder), "--images", "300"]) == 0
    return folder


@pytest.fixture(scope="module", params=list(CIRCUIT))
def subject(request, folder):
    settings = Settings(samples=SAMPLES, paths=PATHS, granularity=request.param)
    return open_subject(str(folder / "planted.pt"), None, settings, CPU, Silent())


def cost(subject, removed, reference=None):
    """D_KL of the model and the model without these edges, by the oracle."""
    clean = subject.setup.calibration.clean
    whole = subject.graph.run(clean)
    circuit = subject.graph.run(clean, removed, subject.setup.reference if reference is None else reference)
    return float(kl_divergence(whole, circuit).mean())


def apart(subject):
    """The circuit's edges, and all others."""
    circuit = set(CIRCUIT[subject.graph.granularity])
    edges = subject.graph.edges()
    return [edge for edge in edges if edge.name in circuit], [edge for edge in edges if edge.name not in circuit]


def test_the_model_does_its_task():
    images, labels = planted_images(400, 1)
    pixels = torch.from_numpy(images)[:, None] / 127.5 - 1
    answers = planted_model()(pixels)
    assert torch.equal(answers.argmax(dim=1), torch.from_numpy(labels))
    assert sorted(set(labels)) == [0, 1, 2, 3]


def test_the_circuits_edges_are_the_graphs(subject):
    circuit, others = apart(subject)
    assert len(circuit) == len(CIRCUIT[subject.graph.granularity])
    assert len(others) > 2 * len(circuit)


@torch.no_grad()
@pytest.mark.parametrize("ablation", [ablation for ablation in ABLATIONS if ablation != "zero"])
def test_the_circuit_alone_is_the_model(subject, ablation):
    """Zero as the embedding's ablation takes away the constant that holds the norms still."""
    settings = Settings(samples=SAMPLES, ablation=ablation, granularity=subject.graph.granularity)
    setup = prepare(subject.graph_module, subject.opened.images, settings)
    circuit, others = apart(subject)
    assert cost(subject, others, setup.reference) < 1e-6
    assert min(cost(subject, [edge], setup.reference) for edge in circuit) > 0.05


@torch.no_grad()
def test_all_other_heads_and_paths_are_idle_whatever_replaces_them(subject):
    others = [edge for edge in apart(subject)[1] if edge.writer.sublayer != EMBED]
    nothing = {name: torch.zeros_like(value) for name, value in subject.setup.reference.items()}
    assert cost(subject, others, nothing) < 1e-6


@pytest.mark.parametrize(
    "method", ["acdc", "eap-acdc", "edge-pruning", "eap", "relp", "eap-ig", "eap-ig-activations", "ensemble"]
)
def test_methods_find_the_circuit(subject, method):
    assert auroc(subject, method) >= 0.95


@pytest.mark.parametrize("method", ["random", "magnitude"])
def test_chance_and_weights_do_not(subject, method):
    assert auroc(subject, method) < 0.8


def auroc(subject, method):
    settings = read_method(
        method, Settings(samples=SAMPLES, paths=PATHS, gate_steps=150, granularity=subject.graph.granularity)
    )
    scores = rank_edges(subject, read_method(method, settings), [3e-3, 3e-2], Silent())
    circuit = set(CIRCUIT[subject.graph.granularity])
    return roc_auc_score([name in circuit for name in scores], [abs(score) for score in scores.values()])


def test_the_busy_neurons_are_a_path_of_their_own(subject):
    paths = {writer.name: writer.units for writer in subject.graph.writers}
    assert paths["m0.p1"] == paths["m2.p1"] == (0, 1)


def test_the_files_name_each_other_and_repeat(folder, tmp_path):
    record = read_json(folder / "circuit.json", "vitfx-planted/1", "")
    assert record["edges"] == {name: list(edges) for name, edges in CIRCUIT.items()}
    write_planted(tmp_path, 300)
    assert (tmp_path / "images.npz").read_bytes() == (folder / "images.npz").read_bytes()

"""One bit flipped in a file that vitfx wrote: its reader refuses it in a sentence, or reads what was written."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from onnx import helper

from passes.plan import DeletionPlan, Refit, SublayerDeletion
from tests.support.bit_flips import with_a_bit_flipped
from tests.support.prune_runs import DIGITS, GREY, artifact
from vitfx.circuits.circuit import Circuit, Decision, Edge, Reader, Writer, read_circuit
from vitfx.deploy.export import export_onnx
from vitfx.deploy.onnx_file import read_onnx, seal
from vitfx.discovery.basis.journal import FileJournal
from vitfx.models.checkpoint import load_model
from vitfx.pruning.latency_table import LatencyTable
from vitfx.pruning.plan_file import PLAN_FILES, read_plan, write_plan
from vitfx.support.errors import UserError

FLIPS = 100
DECISIONS = tuple(
    Decision(Edge(Writer("m0", number, (number,)), Reader("a1", 0)), number % 2 == 0, number / 3, number / 7)
    for number in range(12)
)


def refusals(path: Path, read, written) -> list[str]:
    """Of `FLIPS` damaged files; the others are read as what was written."""
    sentences = []
    for place in with_a_bit_flipped(path, FLIPS):
        try:
            assert read() == written, f"byte {place} of {path.name} is believed"
        except UserError as error:
            sentences.append(str(error))
    assert read() == written
    return sentences


def test_circuits(tmp_path):
    circuit = Circuit(DECISIONS, 0.25, {"tau": 0.05}, {"vitfx": "0"})
    path = tmp_path / "circuit.json"
    path.write_text(circuit.to_json(), encoding="utf-8")
    sentences = refusals(path, lambda: read_circuit(path), circuit)
    assert len(sentences) >= FLIPS // 2
    assert any("do not match its digest" in sentence for sentence in sentences)


@pytest.mark.parametrize("name", PLAN_FILES)
def test_plans(tmp_path, name):
    constant = torch.arange(8.0, dtype=torch.float64)
    plan = DeletionPlan(
        (SublayerDeletion("m0", "neuron", (0, 2), 5, constant),), (Refit("m0", torch.rand(8, 3), torch.rand(8)),)
    )
    write_plan(tmp_path, plan)
    assert refusals(tmp_path / name, lambda: read_plan(tmp_path).to_json(), plan.to_json())


def test_records(tmp_path):
    table = LatencyTable(3.0, 2.5, {"a0": ((1, 0.5), (2, 0.7)), "m0": ((8, 0.25), (16, 0.5))})
    table.write(path := tmp_path / "latency.json")
    assert refusals(path, lambda: LatencyTable.read(path), table)


def test_artifacts(tmp_path):
    path = artifact(tmp_path / "pruned.pt")
    written = load_model(str(path)).fingerprint

    def read():
        model = load_model(str(path))
        assert (model.preprocess, model.classes, model.data) == (GREY, DIGITS, "digits")
        return model.fingerprint

    sentences = refusals(path, read, written)
    assert sum("does not match its checksum" in sentence for sentence in sentences) >= FLIPS // 2


def test_onnx_files(tmp_path):
    graph_module = load_model(str(artifact(tmp_path / "pruned.pt"))).module
    export_onnx(graph_module, path := tmp_path / "pruned.onnx", torch.zeros(2, 1, 8, 8), {"vitfx": "0"})
    written = read_onnx(path)
    sentences = refusals(path, lambda: read_onnx(path), written)
    assert sum("does not match its digest" in sentence for sentence in sentences) >= FLIPS // 2


def test_an_onnx_file_whose_digest_has_a_damaged_name(tmp_path):
    model = helper.make_model(helper.make_graph([], "empty", [], []))
    helper.set_model_props(model, {"vitfx": "0", "source": "b" * 64})
    seal(model)
    path = tmp_path / "model.onnx"
    path.write_bytes(model.SerializeToString())
    read_onnx(path)
    path.write_bytes(path.read_bytes().replace(b"digest", b"diguse"))
    with pytest.raises(UserError, match="does not match its digest"):
        read_onnx(path)
    helper.set_model_props(model, {"source": "b" * 64})
    path.write_bytes(model.SerializeToString())
    assert read_onnx(path) == model


def test_journals_go_on_before_the_damage(tmp_path):
    """A decision in doubt and those behind it are made again; a key in doubt belongs to no run."""
    path = tmp_path / "run.journal"
    FileJournal(path, "key").record(DECISIONS)
    first = len(path.read_text().splitlines()[0])
    for place in with_a_bit_flipped(path, FLIPS):
        try:
            journal = FileJournal(path, "key")
        except UserError as error:
            assert place <= first and "belongs to an interrupted run" in str(error)
            continue
        recalled = [decision for each in DECISIONS for decision in journal.recall([each.edge]) or ()]
        assert recalled == list(DECISIONS[: len(recalled)])

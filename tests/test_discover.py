"""`python -m vitfx.discover` from a model to circuit files, and on to `prune --circuit`."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from tests.support.discover_runs import QKV, qkv_circuit, read, run
from tests.support.prune_runs import EDGES, GREY, artifact, model, picture, report
from tests.support.prune_runs import discover as prune_discover
from tests.support.prune_runs import run_circuit as prune_circuit
from vitfx.circuits.circuit import Circuit
from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.discover import main
from vitfx.discovery.basis.fidelity import fidelity
from vitfx.discovery.basis.settings import METHODS, Settings
from vitfx.discovery.run import prepare
from vitfx.graph.trace import to_canonical
from vitfx.images.splits import open_data
from vitfx.models.record import sealed
from vitfx.show import main as show

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifact(tmp_path_factory.mktemp("discover") / "model.pt")


@pytest.fixture(scope="module")
def circuit(path: Path) -> Path:
    return qkv_circuit(path)


def test_a_circuit_is_written_and_told(path: Path, tmp_path: Path, capsys: Captured) -> None:
    out = tmp_path / "circuit.json"
    assert run(path, out, "--tau", "0.01") == 0
    found, said = read(out), capsys.readouterr().out
    assert [one.name for one in tmp_path.iterdir()] == ["circuit.json"]
    assert len(found.decisions) == EDGES
    assert 0 < len(found.removed) < EDGES
    assert f"the head graph has {EDGES} edges" in said
    assert "activations kept: " in said
    assert f"the circuit on 16 calibration images: KL {found.kl:.4f} nats" in said
    assert said.splitlines()[-2:] == [
        f"next: python -m vitfx.show {out}",
        f"next: python -m vitfx.prune {path} --circuit {out}",
    ]
    assert show([str(out), "--out", str(tmp_path / "picture.svg")]) == 0


def test_the_evaluation_is_that_of_the_edge_graph_on_images_not_seen(circuit: Path) -> None:
    found = read(circuit)
    graph_module = to_canonical(model(), torch.zeros(2, 1, 8, 8)).graph_module
    paths: dict[str, list[list[int]]] = {}
    for writer in {one.edge.writer for one in found.decisions if one.edge.writer.sublayer.startswith("m")}:
        paths.setdefault(writer.sublayer, [[], [], [], []])[writer.index or 0] = list(writer.units)
    graph = EdgeGraph(graph_module, paths, "qkv")
    splits = open_data("digits", GREY)
    images, held_out = splits.calibration.sample(16, 0).load(), splits.evaluation.sample(40, 0).load()
    setup = prepare(graph_module, images, Settings.from_json(found.settings))
    expected = fidelity(graph, found.removed, setup.reference, held_out.pixels, held_out.labels)
    assert found.details["evaluation"] == pytest.approx(expected)
    assert found.details["fidelity"]["kl"] == found.kl


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("granularity", ["block", "edge"])
def test_every_method(path: Path, tmp_path: Path, method: str, granularity: str) -> None:
    options = ["--method", method, "--granularity", granularity, "--eval-samples", "0"]
    options += ["--tau", "0.005" if granularity == "edge" else "0.1"] if "acdc" in method else ["--remove", "0.3"]
    options += ["--gate-steps", "40"] if method == "edge-pruning" else []
    assert run(path, tmp_path / "out.json", *options) == 0
    found = read(tmp_path / "out.json")
    assert (found.settings["method"], found.settings["granularity"]) == (method, granularity)
    assert 0 < len(found.removed) < len(found.decisions)
    assert "evaluation" not in found.details
    assert ("calibration" in found.details) == (method == "eap-acdc")


def test_a_resampled_circuit_is_not_run_on_other_images(path: Path, tmp_path: Path, capsys: Captured) -> None:
    assert run(path, tmp_path / "out.json", "--tau", "0.01", "--ablation", "resample") == 0
    assert "evaluation" not in read(tmp_path / "out.json").details
    assert "a resampled circuit has values for its calibration images only" in capsys.readouterr().out


def test_the_same_seed_gives_the_same_bytes(path: Path, circuit: Path, tmp_path: Path) -> None:
    assert run(path, tmp_path / "again.json", *QKV) == 0
    assert (tmp_path / "again.json").read_bytes() == circuit.read_bytes()


def test_fewer_images_than_the_default_are_no_error(path: Path, tmp_path: Path) -> None:
    for index in range(40):
        for part in ("train", "val"):
            picture(tmp_path / "photos" / part / str(index % 10) / f"{index}.png", index)
    out = tmp_path / "circuit.json"
    options = ["--data", str(tmp_path / "photos"), "--paths", "4", "--device", "cpu", "--out", str(out)]
    assert main([str(path), *options]) == 0
    assert read(out).settings["samples"] == 40


def test_repeats(path: Path, tmp_path: Path, capsys: Captured) -> None:
    assert run(path, tmp_path / "out.json", "--tau", "0.01", "--repeats", "3") == 0
    assert run(path, tmp_path / "first.json", "--tau", "0.01") == 0
    assert run(path, tmp_path / "second.json", "--tau", "0.01", "--seed", "1") == 0
    found, first, second = (read(tmp_path / f"{name}.json") for name in ("out", "first", "second"))
    assert found.decisions == first.decisions
    steady = found.details["stability"]
    assert (steady["repeats"], steady["seeds"]) == (3, [0, 1, 2])
    assert steady["kl"][:2] == [first.kl, second.kl]
    assert 0 < steady["overlap"]["edges"] < 1
    assert steady["survival"]["embed"] == 1
    assert sum(steady["kept_by"]["heads"]) == 4
    assert "3 runs with other images and seeds; of what either of two keeps, both keep" in capsys.readouterr().out
    assert sorted(one.name for one in tmp_path.iterdir()) == ["first.json", "out.json", "second.json"]


def test_a_circuit_goes_on_to_prune(path: Path, circuit: Path, tmp_path: Path) -> None:
    assert prune_circuit(path, tmp_path / "out", "--circuit", str(circuit)) == 0
    found, known = report(tmp_path / "out")["circuit"], read(circuit)
    assert (tmp_path / "out" / "circuit.json").read_bytes() == circuit.read_bytes()
    assert (found["source"], found["granularity"], found["kl"]) == (str(circuit), "qkv", known.kl)
    assert found["fingerprint"] == known.fingerprint()
    assert found["artifact_kl"] != pytest.approx(known.kl, rel=1e-3)
    settings = report(tmp_path / "out")["settings"]
    assert {**settings, **known.settings} == settings
    assert any("restores the edges between survivors" in note for note in report(tmp_path / "out")["notes"])


def test_prune_discovers_the_same_circuit(path: Path, circuit: Path, tmp_path: Path) -> None:
    written = prune_discover(path, tmp_path / "out", *QKV)
    known = read(circuit)
    details = {name: value for name, value in known.details.items() if name != "evaluation"}
    whole = Circuit(known.decisions, known.kl, known.settings, known.origins, details)
    assert written.decode() == whole.to_json()


def test_circuits_that_prune_refuses(path: Path, circuit: Path, tmp_path: Path, capsys: Captured) -> None:
    def refusal(given: Path, *options: str) -> str:
        assert prune_circuit(given, tmp_path / "out", *options) == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    other = artifact(tmp_path / "other.pt")
    record = torch.load(other, weights_only=True)
    name = next(key for key, value in record["state_dict"].items() if value.is_floating_point())
    record["state_dict"][name] = record["state_dict"][name] * 1.01
    torch.save(sealed(record), other)
    assert "was found on another model's weights" in refusal(other, "--circuit", str(circuit))
    known = read(circuit)
    shifted = tmp_path / "shifted.json"
    shifted.write_text(dataclasses.replace(known, origins={**known.origins, "images": "0" * 64}).to_json())
    assert "found on other calibration images" in refusal(path, "--circuit", str(shifted))
    fewer = Circuit(known.decisions[1:], known.kl, known.settings, known.origins, known.details)
    shifted.write_text(fewer.to_json())
    assert "and not each of the graph's" in refusal(path, "--circuit", str(shifted))
    assert "brings its own settings: leave out --tau" in refusal(path, "--circuit", str(circuit), "--tau", "0.1")
    assert "can't be read" in refusal(path, "--circuit", str(tmp_path / "none.json"))


def test_where_a_circuit_can_not_go(path: Path, circuit: Path, tmp_path: Path, capsys: Captured) -> None:
    before = circuit.read_bytes()
    assert run(path, circuit) == 2
    assert f"{circuit} already exists" in capsys.readouterr().err
    assert circuit.read_bytes() == before
    assert run(path, tmp_path / "none" / "out.json") == 2
    assert "is in a folder that does not exist" in capsys.readouterr().err
    assert run(path, tmp_path) == 2
    assert "is a folder" in capsys.readouterr().err


def test_help_teaches(capsys: Captured) -> None:
    with pytest.raises(SystemExit):
        main(["--help-all"])
    said = " ".join(capsys.readouterr().out.split())
    assert "25, 169, 6,793 and 18,025 edges" in said
    assert "torchrun --nproc-per-node=4 -m vitfx.discover" in said


def test_what_halves_do_not_agree_on_is_marked_and_kept(path: Path, tmp_path: Path, capsys: Captured) -> None:
    options = ["--method", "eap", "--granularity", "qkv", "--remove", "0.4"]
    for name, more in {
        "plain": ["--eval-samples", "20"],
        "marked": ["--stability", "3", "--eval-samples", "0"],
        "certain": ["--stability", "3", "--certain", "1", "--eval-samples", "20"],
    }.items():
        assert run(path, tmp_path / f"{name}.json", *options, *more) == 0
    said = capsys.readouterr().out
    plain, marked, certain = (read(tmp_path / f"{name}.json") for name in ("plain", "marked", "certain"))
    assert (marked.decisions, marked.kl) == (plain.decisions, plain.kl)
    unsure, kept = marked.details["halves"]["unsure"], certain.details["halves"]["kept_after_all"]
    assert unsure and all(0 < share < 1 for share in unsure.values())
    assert certain.details["halves"]["unsure"] == unsure
    assert set(certain.removed) < set(plain.removed)
    assert len(plain.removed) - len(certain.removed) == kept > 0
    assert not {edge.name for edge in certain.removed} & unsure.keys()
    assert certain.kl == certain.details["fidelity"]["kl"] < plain.kl
    assert f"3 random halves of the images: some removed and others kept {len(unsure):,} of " in said
    assert f"; {kept:,} edges that fewer than 100% removed are kept" in said
    assert "abstention" not in {**plain.details, **marked.details}
    compared = certain.details["abstention"]
    assert list(compared) == ["as they are", "blurred", "noisy"]
    unshifted = compared["as they are"]
    assert unshifted["abstaining"] == certain.details["evaluation"]
    assert unshifted["removing"] == plain.details["evaluation"]
    for of in compared.values():
        assert of["abstaining"]["kl"] < of["removing"]["kl"]
        assert of["abstaining"]["whole_accuracy"] == of["removing"]["whole_accuracy"] is not None
    assert len({of["removing"]["kl"] for of in compared.values()}) == 3
    assert "20 held-out images: with and without the edges kept for want of agreement" in said

"""`--classes` and `classes=`: the commands on some of a model's classes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
import transformers
from torch import nn

import vitfx
import vitfx.discover
import vitfx.recover
from benchmarks import runtimes
from tests.support.checks import assert_equal
from tests.support.families import images, make
from tests.support.prune_runs import checkpoint, discover, report, run, run_circuit
from vitfx.circuits.circuit import read_circuit
from vitfx.deploy.runtime import open_session
from vitfx.images.selection import Selection
from vitfx.models.checkpoint import LoadedModel, load_model
from vitfx.models.chosen import chosen_of, keep_only, keep_same
from vitfx.runs.choose_classes import choose
from vitfx.support.errors import UserError

PIXELS, LABELS = images(24), torch.arange(24) % 7
SOME = ("--classes", "7,3,1")
REMARK = "3 of 10 classes are kept, '7', '3', '1': "


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run for three classes of ten."""
    folder = tmp_path_factory.mktemp("small")
    assert run(checkpoint(folder / "vit.pt"), folder / "out", "--tau", "0.001", *SOME) == 0
    return folder / "out"


def logits(model: LoadedModel) -> torch.Tensor:
    with torch.no_grad():
        return model.module(torch.ones(2, 1, 8, 8) * torch.tensor([1.0, 2.0]).view(2, 1, 1, 1))


def test_the_artifact_answers_these_classes(small: Path) -> None:
    artifact = load_model(str(small / "pruned.pt"))
    assert artifact.classes == ("7", "3", "1") and logits(artifact).shape == (2, 3)
    for name in ("pruned", "baseline"):
        model = onnx.load(small / f"{name}.onnx")
        facts = {fact.key: fact.value for fact in model.metadata_props}
        assert json.loads(facts["classes"]) == ["7", "3", "1"]
        assert model.graph.output[0].type.tensor_type.shape.dim[1].dim_value == 3
    found = report(small)
    assert found["settings"]["classes"] == ["7", "3", "1"]
    assert found["images"]["evaluation"] == 50
    assert any(note.startswith(REMARK) for note in found["notes"])
    assert read_circuit(small / "circuit.json").settings["classes"] == ["7", "3", "1"]


def test_the_baseline_is_the_model_s_own_answers(small: Path) -> None:
    whole, part = load_model(str(small.parent / "vit.pt")), load_model(str(small / "pruned.pt"))
    chosen = chosen_of(part)
    assert chosen == Selection((7, 3, 1), 10, tuple("0123456789"))
    same = keep_same(whole, chosen, 10)
    assert_equal(logits(same), logits(whole)[:, [7, 3, 1]], 1e-6)
    assert same.fingerprint == part.provenance["model_fingerprint"] != whole.fingerprint


@pytest.mark.slow
def test_prune_the_artifact_again_and_for_fewer(small: Path, tmp_path: Path, capsys: Any) -> None:
    assert run(small / "pruned.pt", tmp_path / "again", "--tau", "0.0005") == 0
    assert "3 of 10 classes are kept, '7', '3', '1'" in capsys.readouterr().out.replace("\n", " ")
    assert report(tmp_path / "again")["settings"]["classes"] == ["7", "3", "1"]
    assert run(tmp_path / "again" / "pruned.pt", tmp_path / "fewer", "--tau", "0.0005", "--classes", "1,7") == 0
    artifact = load_model(str(tmp_path / "fewer" / "pruned.pt"))
    assert artifact.classes == ("1", "7")
    chosen = chosen_of(artifact)
    assert chosen is not None and chosen.positions == (1, 7)
    assert "2 of 10 classes are kept, '1', '7'" in " ".join(report(tmp_path / "fewer")["notes"])


def test_its_circuit_brings_its_classes(small: Path, tmp_path: Path, capsys: Any) -> None:
    model = small.parent / "vit.pt"
    circuit = ("--circuit", str(small / "circuit.json"))
    assert run_circuit(model, tmp_path / "same", *circuit) == 0
    assert (tmp_path / "same" / "circuit.json").read_bytes() == (small / "circuit.json").read_bytes()
    assert run_circuit(model, tmp_path / "other", *circuit, "--classes", "1,3,7") == 2
    assert (
        "the circuit was found for '7', '3', '1', and the model is asked for '1', '3', '7': choose the same --classes"
        in capsys.readouterr().err
    )


@pytest.fixture(scope="module")
def with_other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run for three classes of ten, and all others as one."""
    folder = tmp_path_factory.mktemp("other")
    assert run(checkpoint(folder / "vit.pt"), folder / "out", "--tau", "1e-4", *SOME, "--other") == 0
    return folder / "out"


def test_all_others_as_one(with_other: Path, capsys: Any) -> None:
    whole, artifact = load_model(str(with_other.parent / "vit.pt")), load_model(str(with_other / "pruned.pt"))
    chosen = chosen_of(artifact)
    assert chosen == Selection((7, 3, 1), 10, tuple("0123456789"), "other")
    assert artifact.classes == ("7", "3", "1", "other") and logits(artifact).shape == (2, 4)
    same = logits(keep_same(whole, chosen, 10)).softmax(1)
    assert_equal(same[:, :3], logits(whole).softmax(1)[:, [7, 3, 1]], 1e-6)
    found = report(with_other)
    assert found["settings"]["classes"] == ["7", "3", "1", "other"] and found["settings"]["other"]
    remark = "3 of 10 classes are kept, '7', '3', '1', and 'other' stands for all others: 870 for calibration and 218 "
    assert any(note.startswith(remark) for note in found["notes"])
    text = (with_other / "report.md").read_text()
    assert "for 3 classes and all others as one" in text
    assert "top-1 on the chosen classes" in text and "top-1 on the others" in text
    for side in ("baseline", "pruned"):
        parts = found[side]["accuracy_by_choice"]
        assert min(parts) <= found[side]["accuracy"] <= max(parts)
    for name in ("pruned", "baseline"):
        facts = {fact.key: fact.value for fact in onnx.load(with_other / f"{name}.onnx").metadata_props}
        assert json.loads(facts["classes"]) == ["7", "3", "1", "other"]


def test_choose_again_where_all_others_are_one(with_other: Path) -> None:
    artifact = load_model(str(with_other / "pruned.pt"))
    given = logits(artifact).softmax(1)
    fewer = choose(artifact, "1,7", artifact.classes, 4, other=True)
    assert fewer.classes == ("1", "7", "other")
    assert_equal(logits(fewer).softmax(1), torch.stack([given[:, 2], given[:, 0], given[:, 1] + given[:, 3]], 1), 1e-6)
    chosen = chosen_of(fewer)
    assert chosen is not None and chosen.positions == (1, 7)
    assert_equal(logits(keep_same(artifact, chosen, 4)), logits(fewer), 1e-6)
    alone = choose(artifact, ["3", "1"], artifact.classes, 4)
    assert alone.classes == ("3", "1")
    assert_equal(logits(alone), logits(artifact)[:, [1, 2]], 1e-6)
    with pytest.raises(UserError, match="does not answer all of the 2 classes"):
        keep_same(alone, chosen, 2)
    with pytest.raises(UserError, match="`classes` names 'other', the model's class for all others: give `other` ins"):
        choose(artifact, "7,other", artifact.classes, 4)
    with pytest.raises(UserError, match="the model has no class '2'"):
        choose(artifact, "7,2", artifact.classes, 4)


def test_all_others_as_one_from_python(tmp_path: Path) -> None:
    model = make("timm")
    circuit = vitfx.discover(model, PIXELS, LABELS, tau=1e-5, paths=2, classes=[5, 0, 3], other=True)
    assert circuit.settings["classes"] == ["5", "0", "3", "other"] and circuit.settings["other"] is True
    pruned = vitfx.prune(model, PIXELS, LABELS, circuit=circuit, compensate="none")
    assert pruned.circuit.to_json() == circuit.to_json() and len(pruned.images) == 24
    assert pruned.images.labels is not None and pruned.images.labels.tolist().count(3) == 14
    with torch.no_grad():
        assert_equal(pruned.original(PIXELS).softmax(1)[:, :3], model(PIXELS).softmax(1)[:, [5, 0, 3]], 1e-5)
    written = pruned.to_onnx(tmp_path / "pruned.onnx")
    assert open_session(written, torch.device("cpu")).run(PIXELS).shape == (24, 4)
    with pytest.raises(UserError, match="`other` stands for the classes that are left out: say with `classes` which"):
        vitfx.optimize(model, PIXELS, other=True)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (("--other",), "error: --other stands for the classes that are left out: say with --classes which are kept"),
        (
            ("--classes", "0,1,2,3,4,5,6,7,8,9", "--other"),
            "error: --other stands for the classes that are left out, and",
        ),
    ],
)
def test_one_sentence_of_all_others(given: tuple[str, ...], sentence: str, tmp_path: Path, capsys: Any) -> None:
    assert run("demo", tmp_path / "out", *given) == 2
    assert capsys.readouterr().err.startswith(sentence)


def test_its_folder_on_other_runtimes(small: Path, tmp_path: Path) -> None:
    options = ["--samples", "20", "--batches", "1", "--rounds", "1", "--device", "cpu", "--runtimes", "torch"]
    assert runtimes.main([str(small), *options, "--out", str(tmp_path / "times.json")]) == 0
    found = json.loads((tmp_path / "times.json").read_text())
    assert [row["model"] for row in found["latency"]] == ["baseline", "pruned"]
    baseline, pruned = found["evaluation"]["scores"]["baseline"], found["evaluation"]["scores"]["pruned"]
    assert {scores["images"] for scores in (baseline, pruned)} == {20}
    assert baseline["kl"] == 0 < pruned["kl"] < 0.2


def test_other_classes_do_not_go_on(tmp_path: Path, capsys: Any) -> None:
    path, out = checkpoint(tmp_path / "vit.pt"), tmp_path / "out"
    discover(path, out, "--tau", "0.001", *SOME)
    assert run(path, out, "--tau", "0.001", "--classes", "7,3,2") == 2
    assert "discovery.jsonl belongs to an interrupted run" in capsys.readouterr().err
    assert run(path, out, "--tau", "0.001") == 2
    assert run(path, out, "--tau", "0.001", *SOME) == 0


@pytest.mark.parametrize(
    ("classes", "sentence"),
    [
        ("7", "error: --classes names 1 class"),
        ("7,3,7", "error: --classes names '7' twice"),
        ("7,cat", "error: --classes: the model has no class 'cat'"),
        ("lost.txt", "error: --classes lost.txt is no file"),
    ],
)
def test_one_sentence(classes: str, sentence: str, tmp_path: Path, capsys: Any) -> None:
    assert run("demo", tmp_path / "out", "--classes", classes) == 2
    assert capsys.readouterr().err.startswith(sentence)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("which", "names"),
    [
        pytest.param("small", ["7", "3", "1"], marks=pytest.mark.slow),
        ("with_other", ["7", "3", "1", "other"]),
    ],
)
def test_retrain_it(which: str, names: list[str], tmp_path: Path, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(which)
    arguments = [
        str(folder / "pruned.pt"), "--teacher", str(folder.parent / "vit.pt"), "--out", str(tmp_path / "out"),
        "--device", "cpu", "--precision", "fp32", "--epochs", "0.2", "--cache", str(tmp_path / "cache"),
        "--hidden", "0", "--eval-samples", "40",
    ]  # fmt: skip
    assert vitfx.recover.main(arguments) == 0
    found = json.loads((tmp_path / "out" / "report.json").read_text())
    assert found["settings"]["classes"] == names and found["models"][0]["kl"] == 0
    told = "Top-1 on the chosen classes and on the others: baseline " in (tmp_path / "out" / "report.md").read_text()
    assert told == ("accuracy_by_choice" in found["models"][0]) == (which == "with_other")
    artifact = load_model(str(tmp_path / "out" / "pruned.pt"))
    assert artifact.classes == tuple(names) and chosen_of(artifact) is not None


def test_a_teacher_that_lacks_some(small: Path) -> None:
    whole, part = load_model(str(small.parent / "vit.pt")), load_model(str(small / "pruned.pt"))
    chosen = chosen_of(part)
    assert chosen is not None
    assert keep_same(part, chosen, 3) is part
    assert_equal(logits(keep_same(part, chosen.then((2, 0)), 3)), logits(part)[:, [2, 0]], 1e-6)
    other = keep_only(whole, (0, 1), Selection((0, 1), 10, whole.classes))
    with pytest.raises(UserError, match=r"vit.pt does not answer all of the 3 classes, of 10, that the pruned model"):
        keep_same(other, chosen, 2)


def name_classes(model: nn.Module) -> None:
    """A Hugging Face model names its classes."""
    model.config.id2label = dict(enumerate(("cat", "dog", "goldfish, Carassius auratus", "eel", "fox", "gnu", "hen")))


@pytest.mark.parametrize(
    ("name", "classes", "places", "called"),
    [
        ("timm", [5, 0, 3], [5, 0, 3], ("5", "0", "3")),
        ("timm", torch.tensor([6, 2]), [6, 2], ("6", "2")),
        ("vitfx", "4,1,2", [4, 1, 2], ("4", "1", "2")),
        ("hf-vit", ["goldfish", "Hen", 0], [2, 6, 0], ("goldfish, Carassius auratus", "hen", "cat")),
    ],
)
def test_from_python(name: str, classes: Any, places: list[int], called: tuple[str, ...]) -> None:
    model = make(name)
    for part in model.modules():
        if isinstance(part, transformers.PreTrainedModel):
            name_classes(part)
    pruned = vitfx.prune(model, PIXELS, LABELS, tau=1e-5, paths=2, compensate="mean", classes=classes)
    answers = model(PIXELS)
    with torch.no_grad():
        assert_equal(pruned.original(PIXELS), answers[:, places], 1e-5)
    assert len(pruned.images) == sum(int((place == LABELS).sum()) for place in places)
    assert pruned.images.labels is not None and pruned.images.labels.max() == len(places) - 1
    assert pruned.circuit.settings["classes"] == list(called)
    assert pruned.model.classes == called and chosen_of(pruned.model) is not None


def test_the_other_functions_and_a_circuit(capsys: Any) -> None:
    model = make("timm")
    circuit = vitfx.discover(model, PIXELS, LABELS, tau=1e-5, paths=2, classes=[5, 0, 3], progress=True)
    assert "3 of 7 classes are kept, '5', '0', '3': 10 are left of the images" in capsys.readouterr().err
    pruned = vitfx.prune(model, PIXELS, LABELS, circuit=circuit, compensate="none")
    assert pruned.circuit.to_json() == circuit.to_json() and pruned.module(PIXELS).shape == (24, 3)
    optimized = vitfx.optimize(model, PIXELS, classes=[5, 0, 3])
    with torch.no_grad():
        assert_equal(optimized.module(PIXELS), model(PIXELS)[:, [5, 0, 3]], 1e-4)
    whole = vitfx.discover(model, PIXELS, LABELS, tau=1e-5, paths=2, classes=range(7))
    assert "classes" not in whole.settings and whole.origins["model"] != circuit.origins["model"]


@pytest.mark.parametrize(
    ("labels", "classes", "sentence"),
    [
        (LABELS, [5, 9], "`classes`: 9 is none of the model's 7 logits: give numbers from 0 to 6"),
        (LABELS, [5, "cat"], "the model does not name its 7 logits, so 'cat' is unknown"),
        (LABELS, [0.5, 1], r"`classes` \[0.5, 1\] are neither names nor numbers: give a list of either"),
        (LABELS, 5, "`classes` 5 are neither names nor numbers"),
        (torch.zeros(24, dtype=torch.long), [5, 3], "0 of the 24 images are of the chosen classes: give 2 or more"),
        (torch.rand(24, 7).round(), [5, 3], "`classes` is for images of one class each: give integers as labels"),
    ],
)
def test_one_sentence_from_python(labels: torch.Tensor, classes: Any, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        vitfx.discover(make("timm"), PIXELS, labels, classes=classes)


@pytest.mark.parametrize(("task", "said"), [("values", "task is values"), ("labels", "task is labels")])
def test_only_of_classes(task: str, said: str) -> None:
    with pytest.raises(UserError, match=f"`classes` is for models of classes, and this one's {said}"):
        vitfx.discover(make("timm"), PIXELS, classes=[0, 1], task=task)

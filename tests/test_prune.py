"""`python -m vitfx.prune` from a checkpoint to a folder of results, and `vitfx.prune` from Python."""

from __future__ import annotations

import contextlib
import io
import json
from dataclasses import dataclass
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import vitfx
from passes.stream import read_sites
from tests.support.prune_runs import DIGITS, EDGES, GREY, checkpoint, discover, model, picture, report, run
from vitfx.circuits.circuit import Circuit
from vitfx.discovery.basis.settings import ABLATIONS, CORRUPTIONS
from vitfx.images.image_set import Images
from vitfx.images.splits import open_data
from vitfx.models.checkpoint import load_model
from vitfx.pruning.plan_file import read_plan
from vitfx.runs.prune_files import RESULTS
from vitfx.support.errors import UserError
from vitfx.version import VERSION


@dataclass(frozen=True)
class Finished:
    """A run at τ = 0.01: its input, its folder, what it printed."""

    checkpoint: Path
    out: Path
    printed: str


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("prune")
    path = checkpoint(folder / "model.pt")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        assert run(path, folder / "out", "--tau", "0.01") == 0
    return Finished(path, folder / "out", printed.getvalue())


@pytest.fixture(scope="module")
def unlabelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on 30 images without classes, two of them corrupt."""
    folder = tmp_path_factory.mktemp("unlabelled")
    for index in range(28):
        picture(folder / "images" / f"{index:02}.png", index)
    for name in ("x.png", "y.jpg"):
        (folder / "images" / name).write_bytes(b"\x89PNG, or so it says")
    path = checkpoint(folder / "model.pt", data=None)
    assert run(path, folder / "out", "--data", str(folder / "images"), "--samples", "24", "--tau", "0.01") == 0
    return folder / "out"


@pytest.fixture(scope="module")
def digits() -> Images:
    return open_data("digits", GREY).calibration.sample(16, seed=0).load()


def test_every_result_is_there_and_nothing_else(finished: Finished) -> None:
    assert sorted(path.name for path in finished.out.iterdir()) == sorted(RESULTS)


def test_the_report_has_the_agreed_keys(finished: Finished) -> None:
    found = report(finished.out)
    assert {
        "baseline", "pruned", "kl", "agreement", "speedup", "verify", "settings", "environment", "images"
    } <= found.keys()  # fmt: skip
    for side in ("baseline", "pruned"):
        assert {"loss", "accuracy", "params", "flops", "heads", "mlp_neurons", "latency_ms"} <= found[side].keys()
        assert found[side]["latency_ms"].keys() == {"1", "64"}
        assert all(time > 0 for time in found[side]["latency_ms"].values())
    assert found["verify"]["passed"] is True
    assert 0 <= found["verify"]["max_abs_error"] < 1e-4
    assert found["settings"] | {"tau": 0.01, "samples": 16, "seed": 0, "max_kl": None} == found["settings"]
    assert found["environment"]["vitfx"] == VERSION
    assert found["images"] == {"calibration": 16, "evaluation": 50, "skipped": 0}


def test_the_report_counts_what_the_artifact_has(finished: Finished) -> None:
    found, artifact = report(finished.out), load_model(str(finished.out / "pruned.pt")).module
    for side, module in (("baseline", load_model(str(finished.checkpoint)).module), ("pruned", artifact)):
        assert found[side]["params"] == sum(parameter.numel() for parameter in module.parameters())
    assert isinstance(artifact, torch.fx.GraphModule)
    sites = read_sites(artifact)
    assert found["pruned"]["heads"] == sum(one.module.units for one in sites if one.module.kind == "head")
    assert found["pruned"]["mlp_neurons"] == sum(one.module.units for one in sites if one.module.kind == "neuron")
    assert found["pruned"]["sublayers"] == len(sites)
    assert (found["baseline"]["heads"], found["baseline"]["mlp_neurons"], found["baseline"]["sublayers"]) == (4, 32, 4)
    assert found["pruned"]["flops"] < found["baseline"]["flops"]


def test_the_report_scores_the_artifact_on_images_that_discovery_did_not_see(finished: Finished) -> None:
    found, splits = report(finished.out), open_data("digits", GREY)
    evaluation = splits.evaluation.sample(50, seed=0).load()
    assert evaluation.labels is not None
    with torch.no_grad():
        old = model()(evaluation.pixels)
        new = load_model(str(finished.out / "pruned.pt")).module(evaluation.pixels)
    for side, logits in (("baseline", old), ("pruned", new)):
        assert found[side]["loss"] == pytest.approx(F.cross_entropy(logits, evaluation.labels).item(), rel=1e-4)
        assert found[side]["accuracy"] == pytest.approx((logits.argmax(1) == evaluation.labels).float().mean().item())
    kl = F.kl_div(new.log_softmax(1), old.log_softmax(1), log_target=True, reduction="batchmean").item()
    assert found["kl"] == pytest.approx(kl, rel=1e-3)
    assert found["kl"] > 0
    assert found["agreement"] == pytest.approx((old.argmax(1) == new.argmax(1)).float().mean().item())


def test_circuit_plan_and_report_agree(finished: Finished) -> None:
    circuit = Circuit.from_json((finished.out / "circuit.json").read_text())
    assert len(circuit.decisions) == EDGES
    assert 0 < len(circuit.removed) < EDGES
    gone: dict[str, list[int]] = {}
    for edge in circuit.removed:
        gone.setdefault(edge.writer.sublayer, []).extend(edge.writer.units)
    plan = read_plan(finished.out)
    assert {one.name: list(one.units) for one in plan.deletions} == {
        name: sorted(units) for name, units in gone.items()
    }
    assert report(finished.out)["circuit"] == {
        "source": None,
        "method": "acdc",
        "granularity": "head",
        "kl": circuit.kl,
        "artifact_kl": report(finished.out)["circuit"]["artifact_kl"],
        "edges": EDGES,
        "removed": len(circuit.removed),
        "fingerprint": circuit.fingerprint(),
        "fidelity": circuit.details["fidelity"],
        "calibration": None,
    }
    assert circuit.details["fidelity"]["kl"] == circuit.kl
    assert plan.refits
    assert report(finished.out)["circuit"]["artifact_kl"] < circuit.kl


def test_the_report_says_what_compensation_gains(finished: Finished) -> None:
    found = report(finished.out)
    made_up = found["compensation"]
    assert (made_up["kind"], made_up["images"], made_up["held_out"]) == ("ridge", 448, 64)
    assert 0 < made_up["kl"] < made_up["kl_mean"]
    assert [one["name"] for one in made_up["refits"]]
    assert (found["settings"]["compensate"], found["settings"]["compensate_samples"]) == ("ridge", 448)
    assert (
        f"- Survivors refitted on 448 images: on 64 others, D_KL from the original is {made_up['kl']:.4f}, "
        f"against {made_up['kl_mean']:.4f} with only the mean in place of deleted units.\n"
    ) in (finished.out / "report.md").read_text()


@pytest.mark.parametrize(("kind", "left"), [pytest.param("mean", True, marks=pytest.mark.slow), ("none", False)])
def test_other_compensations(tmp_path: Path, kind: str, left: bool) -> None:
    assert run(checkpoint(tmp_path / "model.pt"), tmp_path / "out", "--tau", "0.01", "--compensate", kind) == 0
    plan, found = read_plan(tmp_path / "out"), report(tmp_path / "out")
    assert plan.refits == ()
    assert all((one.constant is not None) == left for one in plan.deletions)
    assert (found["compensation"]["kind"], found["compensation"]["kl"]) == (kind, None)
    assert (found["circuit"]["artifact_kl"] is None) == left


@pytest.mark.parametrize("role", ["pruned", "baseline"])
def test_the_onnx_files_say_what_they_are(finished: Finished, role: str) -> None:
    written = onnx.load(finished.out / f"{role}.onnx")
    assert [one.version for one in written.opset_import if one.domain == ""] == [23]
    metadata = {one.key: one.value for one in written.metadata_props}
    circuit = Circuit.from_json((finished.out / "circuit.json").read_text())
    assert metadata["role"] == role
    assert metadata["vitfx"] == VERSION
    assert json.loads(metadata["preprocess"])["mean"] == [0.3]
    assert json.loads(metadata["settings"])["tau"] == 0.01
    assert json.loads(metadata["tau"]) == 0.01
    assert metadata["circuit_fingerprint"] == circuit.fingerprint()
    assert json.loads(metadata["classes"]) == list(DIGITS)


def test_a_person_can_read_the_report(finished: Finished) -> None:
    text = (finished.out / "report.md").read_text()
    found = report(finished.out)
    assert f"| parameters | {found['baseline']['params']:,} | {found['pruned']['params']:,} |" in text
    assert f"| top-1 | {found['baseline']['accuracy']:.2%} | {found['pruned']['accuracy']:.2%} |" in text
    assert "on 16 calibration images" in text
    assert "Evaluated on 50 images that discovery did not see (0 corrupt ones skipped)" in text


def test_the_console_says_what_is_done(finished: Finished) -> None:
    lines = finished.printed.splitlines()
    assert lines[0] == "images: resized to 8×8 (bicubic), grey; mean 0.3, std 0.4 (the file's own)"
    assert lines[1].startswith("digits: 1438 images of digits for calibration, 359 of digits for evaluation")
    assert lines[2] == "device: cpu, 1 thread"
    assert lines[4].startswith("the model: ")
    assert lines[4].endswith(" parameters; 2 attentions of 2 heads and 2 MLPs of 16 neurons can be pruned")
    assert any(line.startswith("removed ") and line.endswith(f" of {EDGES} edges; plan:") for line in lines)
    assert "top-1" in finished.printed
    assert lines[-3] == f"{finished.out}/ has pruned.onnx, pruned.pt and report.html"
    assert lines[-2] == f"next: python -m vitfx.show {finished.out}/circuit.json"
    assert lines[-1] == f"next: python -m vitfx.prune {finished.checkpoint} --samples 16 --paths 4 --tau 0.02"


def test_the_artifact_prunes_again(finished: Finished, tmp_path: Path) -> None:
    assert run(finished.out / "pruned.pt", tmp_path / "again", "--tau", "1", "--max-kl", "0.02") == 0
    first, second = report(finished.out), report(tmp_path / "again")
    assert second["baseline"]["params"] == first["pruned"]["params"]
    assert second["pruned"]["params"] < second["baseline"]["params"]
    assert second["baseline"]["accuracy"] == first["pruned"]["accuracy"]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_images(finished: Finished, tmp_path: Path) -> None:
    same = discover(finished.checkpoint, tmp_path / "same", "--tau", "0.01")
    other = discover(finished.checkpoint, tmp_path / "other", "--tau", "0.01", "--seed", "1")
    assert same == (finished.out / "circuit.json").read_bytes()
    assert json.loads(same)["origins"]["images"] != json.loads(other)["origins"]["images"]


def test_images_without_labels_give_a_report_without_accuracy(unlabelled: Path) -> None:
    found, text = report(unlabelled), (unlabelled / "report.md").read_text()
    for side in ("baseline", "pruned"):
        assert found[side]["accuracy"] is None
        assert found[side]["loss"] is None
    assert 0 < found["agreement"] <= 1
    assert text.count("top-1") == 1 and "top-1 is missing: the images are not in class folders" in text
    assert "agreement with the original" in text


def test_corrupt_images_are_skipped_and_counted(unlabelled: Path) -> None:
    images = report(unlabelled)["images"]
    assert images["skipped"] == 2
    assert images["calibration"] + images["evaluation"] == 28
    assert "(2 corrupt ones skipped)" in (unlabelled / "report.md").read_text()


@pytest.mark.parametrize(
    "option", [*(("--ablation", one) for one in ABLATIONS), *(("--corruption", one) for one in CORRUPTIONS)]
)
def test_every_ablation_and_corruption(finished: Finished, tmp_path: Path, option: tuple[str, str]) -> None:
    # Another image of each class has to be among them.
    more = ("--samples", "64") if option[1] == "same-class" else ()
    written = json.loads(discover(finished.out / "pruned.pt", tmp_path / "out", "--tau", "0.01", *option, *more))
    assert written["settings"][option[0].removeprefix("--")] == option[1]
    assert written["edges"]["removed"] > 0


def test_max_kl_bounds_the_circuit(finished: Finished, tmp_path: Path) -> None:
    free = json.loads(discover(finished.checkpoint, tmp_path / "free", "--tau", "0.01"))
    bounded = json.loads(discover(finished.checkpoint, tmp_path / "out", "--tau", "0.5", "--max-kl", "0.005"))
    assert free["kl"] > 0.005 >= bounded["kl"] > 0
    assert 0 < bounded["edges"]["removed"] < free["edges"]["removed"]


def test_a_tau_of_zero_changes_nothing_that_costs(finished: Finished, tmp_path: Path) -> None:
    written = Circuit.from_json(discover(finished.checkpoint, tmp_path / "out", "--tau", "0").decode())
    assert all(one.score < 0 for one in written.decisions if not one.kept)
    assert written.kl == pytest.approx(0, abs=1e-9) or written.removed


def test_from_python(digits: Images) -> None:
    original = model(dropout=0.5).train()
    before = {name: value.clone() for name, value in original.state_dict().items()}
    pruned = vitfx.prune(original, digits.pixels, digits.labels, tau=0.01, paths=4)
    assert original.training
    assert all(torch.equal(value, before[name]) for name, value in original.state_dict().items())
    assert pruned.verification.passed
    assert pruned.circuit.settings["samples"] == 16
    parameters = [sum(one.numel() for one in module.parameters()) for module in (pruned.module, original)]
    assert parameters[0] < parameters[1]
    with torch.no_grad():
        logits = pruned.module(digits.pixels[:3])
    assert logits.shape == (3, 10)
    assert torch.isfinite(logits).all()


def test_from_python_with_one_image_more_or_less_than_labels(digits: Images) -> None:
    with pytest.raises(UserError, match="labels are \\(16,\\) for 15 images"):
        vitfx.prune(model(), digits.pixels[1:], digits.labels)
    with pytest.raises(UserError, match="give floats \\(images, channels, height, width\\)"):
        vitfx.prune(model(), digits.pixels[0])
    with pytest.raises(UserError, match="some pixels are NaN"):
        vitfx.prune(model(), digits.pixels / 0)


def test_a_head_that_was_never_trained_is_told(digits: Images) -> None:
    untrained = model()
    nn.init.zeros_(untrained.head.weight)
    nn.init.zeros_(untrained.head.bias)
    with pytest.raises(UserError, match="its head was never trained"):
        vitfx.prune(untrained, digits.pixels, digits.labels)

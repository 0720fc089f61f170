"""`vitfx.prune`, `vitfx.discover` and `vitfx.optimize` from Python: what they return, write and refuse."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch
from torch import nn

import vitfx
from passes.merge_tokens import schedule_of
from tests.support.checks import assert_equal
from tests.support.families import images, make
from vitfx.circuits.circuit import Circuit
from vitfx.deploy import precision_file
from vitfx.deploy.openvino_runtime import is_installed
from vitfx.deploy.runtime import open_session
from vitfx.models.checkpoint import load_model
from vitfx.runs.in_memory import PrunedModel
from vitfx.support.errors import UserError

PIXELS, LABELS = images(24), torch.arange(24) % 7
TAU = 2e-4


@pytest.fixture
def bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    """OpenVINO on a CPU that is said to have bfloat16 arithmetic; it computes in float32 where that is not so."""
    if not is_installed():
        pytest.skip("needs OpenVINO: pip install 'vitfx[openvino]'")
    monkeypatch.setattr(precision_file, "has_bfloat16", lambda: True)


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return make("timm")


@pytest.fixture(scope="module")
def circuit(model: nn.Module) -> Circuit:
    return vitfx.discover(model, PIXELS, LABELS, tau=TAU, paths=4)


@pytest.fixture(scope="module")
def pruned(model: nn.Module, circuit: Circuit) -> PrunedModel:
    return vitfx.prune(model, PIXELS, LABELS, circuit=circuit, compensate="mean")


def logits(path: Path) -> torch.Tensor:
    return open_session(path, torch.device("cpu")).run(PIXELS)


def test_a_circuit_found_apart_is_the_one_that_tau_prunes_by(
    model: nn.Module, circuit: Circuit, pruned: PrunedModel
) -> None:
    assert 0 < len(circuit.removed) < len(circuit.decisions)
    at_once = vitfx.prune(model, PIXELS, LABELS, tau=TAU, paths=4, compensate="mean")
    assert at_once.circuit.to_json() == circuit.to_json() == pruned.circuit.to_json()
    assert str(at_once.plan) == str(pruned.plan)
    with torch.no_grad():
        assert torch.equal(at_once.module(PIXELS), pruned.module(PIXELS))


def test_a_saved_model_is_the_one_in_memory(pruned: PrunedModel, tmp_path: Path) -> None:
    folder = pruned.save(tmp_path / "small")
    names = {"baseline.onnx", "circuit.json", "plan.json", "plan.safetensors", "pruned.onnx", "pruned.pt", "pruned.pt2"}
    assert names == {path.name for path in folder.iterdir()}
    with torch.no_grad():
        expected = pruned.module(PIXELS)
        assert torch.equal(load_model(str(folder / "pruned.pt")).module(PIXELS), expected)
        assert_equal(logits(folder / "pruned.onnx"), expected, 1e-4)
        assert_equal(logits(folder / "baseline.onnx"), pruned.original(PIXELS), 1e-4)
        assert_equal(torch.export.load(folder / "pruned.pt2").module()(PIXELS), expected, 1e-4)
    with pytest.raises(UserError, match=r"small is not empty"):
        pruned.save(folder)
    assert pruned.save(folder, force=True) == folder


def test_one_onnx_file(pruned: PrunedModel, tmp_path: Path) -> None:
    path = pruned.to_onnx(tmp_path / "small.onnx")
    with torch.no_grad():
        assert_equal(logits(path), pruned.module(PIXELS), 1e-4)
    facts = {fact.key: fact.value for fact in onnx.load(path).metadata_props}
    assert facts["vitfx"] == vitfx.__version__ and facts["model"] == "VisionTransformer"
    with pytest.raises(UserError, match="already exists"):
        pruned.to_onnx(path)


def test_a_goal(model: nn.Module) -> None:
    small = vitfx.prune(model, PIXELS, LABELS, target_flops=0.7, seed=1)
    measured, before = small.verification.measured, small.verification.before
    assert small.missed is None and 0.5 < measured.flops / before.flops <= 0.7


@pytest.mark.slow
def test_merged_tokens_are_saved_and_kept_when_pruned_again(model: nn.Module, circuit: Circuit, tmp_path: Path) -> None:
    small = vitfx.prune(model, PIXELS, LABELS, circuit=circuit, compensate="mean", tokens="0:3,1:2")
    assert any("of 17, behind the blocks 14, 12, 12 are left" in note for note in small.notes)
    assert small.verification.passed and small.artifact_kl is not None
    folder = small.save(tmp_path / "small")
    loaded = load_model(str(folder / "pruned.pt")).module
    with torch.no_grad():
        expected = small.module(PIXELS)
        assert torch.equal(loaded(PIXELS), expected)
        assert_equal(logits(folder / "pruned.onnx"), expected, 1e-4)
        assert_equal(torch.export.load(folder / "pruned.pt2").module()(PIXELS), expected, 1e-4)
        assert_equal(vitfx.optimize(loaded, PIXELS).module(PIXELS), expected, 1e-5)
    again = vitfx.prune(loaded, PIXELS, LABELS, tau=0.0, paths=2)
    assert str(schedule_of(again.module)) == "0:3,1:2"
    assert not schedule_of(vitfx.prune(loaded, PIXELS, LABELS, tau=0.0, paths=2, tokens="off").module)
    assert len(vitfx.discover(loaded, PIXELS, LABELS, tau=0.0, paths=2).decisions) > 1


def test_a_goal_with_merged_tokens(model: nn.Module) -> None:
    """What merges is counted first: fewer units go."""
    small, merged = (vitfx.prune(model, PIXELS, LABELS, target_flops=0.7, tokens=tokens) for tokens in ("off", "r=2"))
    costs = [(pruned.verification.measured, pruned.verification.before) for pruned in (small, merged)]
    assert all(0.5 < measured.flops / before.flops <= 0.7 for measured, before in costs)
    assert costs[1][0].neurons > costs[0][0].neurons


def test_optimized_is_exact(model: nn.Module, tmp_path: Path) -> None:
    fast = vitfx.optimize(model, PIXELS)
    assert "narrow_to_cls" in fast.applied and fast.error < 1e-10
    with torch.no_grad():
        expected = model(PIXELS)
        assert_equal(fast.module(PIXELS), expected, 1e-5)
        assert_equal(logits(fast.to_onnx(tmp_path / "fast.onnx")), expected, 1e-4)
    assert vitfx.optimize(model, PIXELS, rewrites="none").applied == ()


@pytest.mark.parametrize("portable", [False, True])
def test_optimized_in_int8(model: nn.Module, tmp_path: Path, portable: bool) -> None:
    """The file is rounded, the module is not."""
    fast = vitfx.optimize(model, PIXELS, precision="int8", portable=portable)
    assert fast.int8 is not None and fast.int8.images == 18 and fast.int8.quantized > 10
    assert fast.divergence is not None and 0 < fast.divergence < 0.05
    path = fast.to_onnx(tmp_path / "int8.onnx")
    assert {node.op_type for node in onnx.load(path).graph.node} >= {"QuantizeLinear", "DequantizeLinear"}
    assert {"vitfx", "preprocess", "precision"} <= open_session(path, torch.device("cpu")).metadata.keys()
    with torch.no_grad():
        expected = model(PIXELS)
        assert_equal(fast.module(PIXELS), expected, 1e-5)
    assert 1e-6 < float((logits(path) - expected).norm() / expected.norm()) < 0.1
    with pytest.raises(UserError, match=r"int8\.onnx already exists"):
        fast.to_onnx(path)


@pytest.mark.usefixtures("bfloat16")
def test_optimized_in_bf16(model: nn.Module, tmp_path: Path) -> None:
    """The file has half the bytes, and every runtime takes it."""
    fast = vitfx.optimize(model, PIXELS, precision="bf16")
    assert fast.divergence is not None and 0 < fast.divergence < 0.001
    path = fast.to_onnx(tmp_path / "bf16.onnx")
    assert open_session(path, torch.device("cpu")).metadata["precision"] == "bf16"
    assert path.stat().st_size < 0.7 * vitfx.optimize(model, PIXELS).to_onnx(tmp_path / "fp32.onnx").stat().st_size
    with torch.no_grad():
        expected = model(PIXELS)
        assert_equal(fast.module(PIXELS), expected, 1e-5)
    assert 1e-6 < float((logits(path) - expected).norm() / expected.norm()) < 0.05


@pytest.mark.slow
@pytest.mark.usefixtures("bfloat16")
def test_a_goal_in_bf16_saves_its_file(model: nn.Module, tmp_path: Path) -> None:
    pruned = vitfx.prune(model, PIXELS, LABELS, target_flops=0.9, tokens="off", target="openvino:bf16:batch=2")
    told = open_session(pruned.save(tmp_path / "out") / "pruned-bf16.onnx", torch.device("cpu")).metadata
    assert told["precision"] == "bf16"


def test_bf16_is_refused_where_nothing_computes_it(model: nn.Module) -> None:
    with pytest.raises(UserError, match="bf16 is computed by OpenVINO"):
        vitfx.prune(model, PIXELS, LABELS, target_flops=0.9, target="cpu:bf16:batch=2")


@pytest.mark.parametrize("precision", ["fp16", "int4", ""])
def test_other_precisions_are_refused(model: nn.Module, precision: str) -> None:
    with pytest.raises(UserError, match=f"precision is '{precision}': give fp32, bf16 or int8"):
        vitfx.optimize(model, PIXELS, precision=precision)


def test_progress_goes_to_standard_error(model: nn.Module, capsys: pytest.CaptureFixture[str]) -> None:
    vitfx.discover(model, PIXELS[:4], LABELS[:4], tau=0.0, paths=2, progress=True)
    out, err = capsys.readouterr()
    assert out == "" and "edges" in err
    vitfx.discover(model, PIXELS[:4], LABELS[:4], tau=0.0, paths=2)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"tau": 1.0, "target_flops": 0.5}, "target_flops and tau are goals of their own: give one"),
        ({"max_drop": 1.0, "target_params": 0.5}, "target_params and max_drop are goals of their own: give one"),
        ({"target_flops": 0.5, "paths": 3}, "target_flops replaces discovery: leave out paths"),
        ({"colour": 1}, "colour is not a setting of discovery: give some of method"),
        ({"compensate": "prayer"}, "compensate is 'prayer': choose one of none, mean, ridge"),
        ({"tokens": "many", "tau": 1.0}, "the token schedule 'many' has 'many': write block:tokens"),
        ({"tokens": "0:9", "target_flops": 0.5}, "block 0 is to merge 9 tokens, but of the 16 that may merge there"),
        ({"tokens": "r=1", "ablation": "position-mean"}, "position-mean leaves a constant for each token behind"),
        ({"device": "abacus"}, "device 'abacus' is not one of"),
        ({"target": "cpu:x", "target_speedup": 2.0}, "cpu:x is not a target"),
    ],
)
def test_mistakes_have_their_sentences(model: nn.Module, arguments: dict[str, object], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        vitfx.prune(model, PIXELS, LABELS, **arguments)  # type: ignore[arg-type]  # that is what is tested


def test_a_limit_has_two_names(model: nn.Module) -> None:
    named = [vitfx.discover(model, PIXELS, tau=0.1, paths=2, **{name: 1e-3}) for name in ("max_kl", "max_divergence")]
    assert named[0].to_json() == named[1].to_json()
    assert named[0].settings["max_kl"] == 1e-3


def test_a_drop_needs_labels(model: nn.Module) -> None:
    with pytest.raises(UserError, match="needs labelled images"):
        vitfx.prune(model, PIXELS, max_drop=1.0)

"""Every kind of answer through the whole compiler, from Python: pruned by τ, by a limit, by a share of the FLOPs."""

import onnxruntime
import pytest
import torch

import vitfx
from tests.support.families import images
from tests.support.kinds import KIND, make, written_out
from tests.support.slow import slow_but
from vitfx.support.errors import UserError

PIXELS = images(24)


def distance(name, pruned, pixels=PIXELS):
    with torch.no_grad():
        whole, small = pruned.original(PIXELS).double(), pruned.module(PIXELS).double()
    return float(written_out(name, whole, small)[len(PIXELS) - len(pixels) :].mean())


def test_one_logit_is_not_free_to_delete():
    """KL over one class is 0 for anything: all sublayers went, and the report said KL 0.0000."""
    pruned = vitfx.prune(make("one logit"), PIXELS, tau=1e-9, compensate="mean")
    assert not pruned.plan.deletions
    smaller = vitfx.prune(make("one logit"), PIXELS, tau=5e-5, compensate="mean")
    assert smaller.plan.deletions
    assert smaller.circuit.kl == pytest.approx(distance("one logit", smaller), rel=1e-3)
    assert smaller.circuit.kl > 1e-6


@pytest.mark.parametrize(
    ("name", "task", "tau"),
    [
        ("labels", "labels", 5e-5),
        pytest.param("embedding", None, 0.002, marks=pytest.mark.slow),
        pytest.param("one value", "values", 0.05, marks=pytest.mark.slow),
        pytest.param("tokens", None, 0.05, marks=pytest.mark.slow),
        ("pixels", None, 0.05),
    ],
)
def test_tau_deletes_what_costs_less_and_the_artifact_is_the_ablated_model(name, task, tau, tmp_path):
    pruned = vitfx.prune(make(name), PIXELS, tau=tau, task=task, compensate="mean")
    assert pruned.plan.deletions
    assert pruned.verification.passed
    assert pruned.circuit.settings["task"] == KIND[name]
    assert pruned.circuit.kl == pytest.approx(distance(name, pruned), rel=1e-3, abs=1e-7)
    path = pruned.to_onnx(tmp_path / "small.onnx")
    session = onnxruntime.InferenceSession(path)
    (answers,) = session.run(None, {"pixels": PIXELS[:3].numpy()})
    with torch.no_grad():
        expected = pruned.module(PIXELS[:3])
    assert torch.allclose(torch.from_numpy(answers), expected, atol=1e-4)


@pytest.mark.parametrize("name", slow_but(("unit embedding",), ["label probabilities", "unit embedding"]))
def test_goals_count_in_the_kinds_own_unit(name):
    """The last quarter of the images is held out, and the divergence on them is what is promised."""
    pruned = vitfx.prune(make(name), PIXELS, target_flops=0.6)
    assert pruned.verification.measured.flops <= 0.6 * pruned.verification.before.flops
    assert pruned.artifact_kl == pytest.approx(distance(name, pruned, PIXELS[-6:]), rel=1e-3)


def test_a_goal_that_the_kind_does_not_have_is_refused():
    with pytest.raises(UserError, match="answers are embedding, neither right nor wrong, so that no max-drop"):
        vitfx.prune(make("embedding"), PIXELS, torch.arange(24) % 2, max_drop=1.0)


def test_a_metric_that_the_kind_does_not_have_is_refused():
    with pytest.raises(UserError, match="metric logit-difference is not defined for a model whose answers are labels"):
        vitfx.discover(make("one logit"), PIXELS, method="eap", metric="logit-difference")

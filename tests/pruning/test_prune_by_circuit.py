import pytest
import torch
from torch import nn

import vitfx
from passes.stream import read_sites
from tests.support.checks import assert_equal
from tests.support.families import HandWritten, images, make, randomised
from vitfx.graph.divergence import kl_divergence
from vitfx.support.errors import UserError


@pytest.fixture(scope="module")
def pruned():
    return vitfx.prune(make("timm"), images(12), tau=1.0, max_kl=2e-3, corruption="noise", paths=4)


def test_the_result_carries_its_proof(pruned):
    assert pruned.verification.passed
    assert pruned.plan.deletions
    left = [site.module.units for site in read_sites(pruned.module)]
    assert sum(left) < sum(site.module.units for site in read_sites(pruned.original))
    with torch.no_grad():
        assert_equal(pruned.original(images(3)), make("timm")(images(3)), 1e-5)


def test_no_threshold_no_change():
    found = vitfx.prune(make("timm"), images(4), tau=0.0, corruption="noise", paths=2)
    assert found.plan.deletions == ()
    assert found.verification.before == found.verification.measured
    assert torch.equal(found.module(images(2)), found.original(images(2)))


def test_a_model_in_training_mode_stays_so_and_is_pruned_as_it_answers():
    model = randomised(torch.nn.Sequential(make("vitfx"))).train()
    found = vitfx.prune(model, images(4), tau=0.0, corruption="noise", paths=2)
    assert model.training
    with torch.no_grad():
        assert_equal(found.module(images(3)), model.eval()(images(3)), 1e-5)


def test_a_resampled_circuit_is_told_from_its_artifact():
    pixels = images(12)
    settings = {"tau": 1.0, "max_kl": 1e-3, "ablation": "resample", "corruption": "noise", "paths": 4}
    found = vitfx.prune(make("timm"), pixels, compensate="mean", **settings)
    with torch.no_grad():
        kl = float(kl_divergence(found.original(pixels), found.module(pixels)).mean())
    assert found.artifact_kl == pytest.approx(kl, rel=1e-5)
    assert found.artifact_kl != pytest.approx(found.circuit.kl, rel=1e-3)
    assert found.notes == (
        "the artifact has a mean where resampling has another image's values, which takes D_KL from the original, on "
        f"the calibration images, from {found.circuit.kl:.4f} to {kl:.4f}",
    )


@pytest.mark.parametrize("granularity", ["edge", "qkv"])
def test_restored_edges_are_told(granularity):
    pixels = images(12)
    settings = {"method": "random", "remove": 0.9, "granularity": granularity, "corruption": "noise", "paths": 4}
    found = vitfx.prune(make("timm"), pixels, compensate="mean", **settings)
    assert found.plan.deletions
    with torch.no_grad():
        kl = float(kl_divergence(found.original(pixels), found.module(pixels)).mean())
    assert found.artifact_kl == pytest.approx(kl, rel=1e-5)
    assert found.artifact_kl != pytest.approx(found.circuit.kl, rel=1e-3)
    assert found.notes == (
        "the artifact restores the edges between survivors, which takes D_KL from the original, on the calibration "
        f"images, from {found.circuit.kl:.4f} to {kl:.4f}",
    )


LEARNED = {"method": "edge-pruning", "remove": 0.3, "gate_steps": 40}


@pytest.mark.parametrize(
    ("granularity", "threshold"), [("head", {"remove": 0.2}), ("block", {"tau": 1e-5}), ("head", LEARNED)]
)
def test_an_artifact_that_is_the_circuit_needs_no_telling(granularity, threshold):
    pixels = images(12)
    settings = {"method": "eap", "granularity": granularity, "corruption": "noise", "paths": 4} | threshold
    found = vitfx.prune(make("timm"), pixels, compensate="mean", **settings)
    assert found.artifact_kl is None
    with torch.no_grad():
        kl = float(kl_divergence(found.original(pixels), found.module(pixels)).mean())
    assert found.circuit.kl == pytest.approx(kl, rel=1e-3)
    assert bool(found.plan.deletions) == (found.notes == ())


@pytest.mark.parametrize(
    ("compensate", "ablation", "said"),
    [
        ("ridge", "mean", "survivors make up for the dead"),
        ("none", "mean", "the dead leave nothing behind"),
        ("mean", "zero", "the dead leave their mean behind"),
    ],
)
def test_what_makes_up_for_the_dead_is_told(compensate, ablation, said):
    pixels = images(64)
    settings = {"method": "taylor", "remove": 0.3, "corruption": "noise", "paths": 4, "ablation": ablation}
    found = vitfx.prune(make("timm"), pixels, compensate=compensate, **settings)
    assert found.verification.passed
    assert found.compensation.kind == compensate
    assert found.compensation.plan is found.plan
    assert bool(found.plan.refits) == (compensate == "ridge")
    with torch.no_grad():
        kl = float(kl_divergence(found.original(pixels), found.module(pixels)).mean())
    assert found.artifact_kl == pytest.approx(kl, rel=1e-5)
    told = f"{said}, which takes D_KL from the original, on the calibration images, from {found.circuit.kl:.4f} to"
    assert found.notes == (f"{told} {kl:.4f}",)
    if compensate == "ridge":
        assert kl < found.circuit.kl
        assert found.compensation.kl < found.compensation.kl_mean


def test_zero_ablation_without_compensation_is_the_circuit():
    settings = {"method": "taylor", "remove": 0.3, "corruption": "noise", "paths": 4, "ablation": "zero"}
    found = vitfx.prune(make("timm"), images(12), compensate="none", **settings)
    assert found.plan.deletions
    assert (found.artifact_kl, found.notes) == (None, ())


def test_shared_weights_are_told():
    model = HandWritten()
    model.blocks[2] = model.blocks[0]
    found = vitfx.prune(randomised(model), images(4), tau=0.0, corruption="noise", paths=2)
    assert "shares weights between layers" in found.notes[0]
    assert found.notes[1:] == ("no head or MLP path is dead at τ = 0: nothing is deleted",)


class CastsInside(HandWritten):
    def forward(self, x):
        return super().forward(x).to(torch.float16).to(torch.float32)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"tua": 1}, "tua is not a setting"),
        ({"compensate": "median"}, "compensate is 'median': choose one of none, mean, ridge"),
        ({"samples": 3}, "samples is not a setting"),
        ({"tau": "a"}, "tau is 'a': give a number"),
        ({"paths": 2.5}, "paths is 2.5: give a whole number"),
        ({"tau": True}, "tau is True"),
    ],
)
def test_settings_from_python_are_checked(settings, reason):
    with pytest.raises(UserError, match=reason):
        vitfx.prune(nn.Identity(), images(4), **settings)


@pytest.mark.parametrize(
    ("tokens", "settings", "said"),
    [
        ("auto", {"tau": 0.01}, "auto chooses tokens for a goal: give a schedule"),
        ("0:2", {"ablation": "position-mean"}, "position-mean leaves a constant for each token behind"),
    ],
)
def test_tokens_that_can_not_merge_here(tokens, settings, said):
    with pytest.raises(UserError, match=said):
        vitfx.prune(make("timm"), images(4), tokens=tokens, **settings)


def test_one_image_is_too_few():
    with pytest.raises(UserError, match="1 images are too few"):
        vitfx.prune(nn.Identity(), images(1))


def test_a_model_that_can_not_be_proved_is_told_before_discovery():
    with pytest.raises(UserError, match="does not run in float64"):
        vitfx.prune(randomised(CastsInside()), images(4), tau=0.0, corruption="noise")

"""All rewrites together, on every family, proved; and what happens when one is wrong."""

import pytest
import torch

import vitfx.deploy.lowering
from passes.base import Pass, PassResult
from tests.support.checks import assert_equal, canonical
from tests.support.families import FAMILIES, images
from tests.support.slow import REPRESENTATIVE, slow_but
from vitfx.deploy.lowering import REWRITES, Normalising, lower, plain_pixels
from vitfx.graph.verify import VerificationError
from vitfx.images.preprocess import Preprocess
from vitfx.support.errors import UserError

PIXELS = images(3)
PREPROCESS = Preprocess((32, 32))


@pytest.mark.parametrize("name", slow_but(REPRESENTATIVE, FAMILIES))
def test_every_family_is_lowered_and_proved(name):
    graph_module = canonical(name).float()
    code = graph_module.code
    lowered = lower(graph_module, REWRITES, PIXELS)
    assert graph_module.code == code
    assert lowered.error < 1e-12
    assert [step.name for step in lowered.steps] == list(REWRITES)
    assert {"fold_patches", "fold_norms", "pack_qkv"} <= set(lowered.applied)
    assert all(step.notes for step in lowered.steps if step.changed)
    assert_equal(lowered.graph_module(PIXELS), graph_module(PIXELS), 1e-5)


@pytest.mark.parametrize("names", [(), ("narrow_to_cls",), ("fold_biases", "absorb_keys", "narrow_to_cls")])
def test_only_what_is_named_is_done(names):
    graph_module = canonical().float()
    lowered = lower(graph_module, names, PIXELS)
    assert set(lowered.applied) == set(names)
    if not names:
        assert lowered.graph_module.code == graph_module.code
        assert lowered.error == 0


def test_plain_pixels():
    graph_module = canonical("torchvision").float()
    plain = plain_pixels(PIXELS, PREPROCESS)
    lowered = lower(graph_module, REWRITES, PIXELS, PREPROCESS)
    assert "plain_pixels" in lowered.applied
    assert_equal(lowered.graph_module(plain), graph_module(PIXELS), 1e-5)
    assert_equal(Normalising(graph_module, PREPROCESS)(plain), graph_module(PIXELS), 1e-5)
    with pytest.raises(UserError, match="plain_pixels: mean has 1 channels"):
        lower(graph_module, REWRITES, PIXELS, Preprocess((32, 32), mean=(0.5,), std=(0.5,)))
    with pytest.raises(UserError, match="needs the rewrite fold_patches"):
        lower(graph_module, ("fold_norms",), PIXELS, PREPROCESS)


class _Wrong(Pass):
    """Makes one weight a little larger."""

    def rewrite(self, graph_module):
        with torch.no_grad():
            graph_module.get_parameter("a0.q.weight")[0, 0] += 1e-6
        return PassResult(graph_module, True)


class _Shifted(Pass):
    """Moves all logits to one side."""

    def __init__(self, by):
        self.by = by

    def rewrite(self, graph_module):
        with torch.no_grad():
            [bias] = [value for name, value in graph_module.head.named_parameters() if value.dim() == 1]
            bias.add_(self.by)
        return PassResult(graph_module, True)


@pytest.mark.parametrize("by", [1e-7, -1e-7, float("nan")])
def test_a_rewrite_that_moves_the_logits_to_either_side_is_caught(by, monkeypatch):
    monkeypatch.setitem(vitfx.deploy.lowering.PASSES, "fold_scales", lambda _: _Shifted(by))
    with pytest.raises(VerificationError, match="fold_scales changes the logits by"):
        lower(canonical().float(), ["fold_scales"], PIXELS)


def test_a_rewrite_that_changes_the_logits_is_caught_and_named(monkeypatch):
    monkeypatch.setitem(vitfx.deploy.lowering.PASSES, "fold_scales", lambda _: _Wrong())
    with pytest.raises(VerificationError, match="fold_scales changes the logits by"):
        lower(canonical().float(), REWRITES, PIXELS)

"""Models whose stream is (tokens, batch, width), as OpenAI's CLIP and nn.TransformerEncoder(batch_first=False)."""

import pytest
import torch
from torch import nn

from passes.stream import is_canonical, read_sites
from tests.support.checks import assert_equal, assert_trainable, plan_of
from tests.support.clip import VisualTransformer
from tests.support.families import CLASSES, images, randomised
from vitfx.deploy.export import compare_onnx, export_onnx
from vitfx.deploy.lowering import REWRITES, lower
from vitfx.graph.trace import to_canonical
from vitfx.graph.verify import ablated_logits, rewrite
from vitfx.models.graph_json import decode, encode

PIXELS = images(3, torch.float64)


class Encoder(nn.Module):
    """Positions (tokens, 1, width), the mean of all tokens, perhaps a step that is no sublayer."""

    def __init__(self, mixes=False):
        super().__init__()
        self.mixes = mixes
        self.patches = nn.Conv2d(3, 32, 8, 8)
        self.positions = nn.Parameter(torch.randn(16, 1, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 48, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(32), enable_nested_tensor=False)
        self.odd, self.head = nn.Linear(32, 32), nn.Linear(32, CLASSES)

    def forward(self, x):
        x = self.patches(x).flatten(2).permute(2, 0, 1) + self.positions
        x = x + self.odd(x).cumsum(0) * x.new_ones(x.shape[1], 1) if self.mixes else x
        return self.head(self.encoder(x).mean(0))


MODELS = {
    "clip": lambda: VisualTransformer(32, 8, 32, 2, 4, CLASSES),
    "clip, weights asked for": lambda: _weighing(VisualTransformer(32, 8, 32, 2, 4, CLASSES)),
    "encoder": Encoder,
    "encoder with a step of its own": lambda: Encoder(mixes=True),
}


def _weighing(model):
    """Attention written out: fused kernels give no weights."""
    for block in model.transformer:
        block.attention = lambda x, attend=block.attn: attend(x, x, x)[0]
    return model


@pytest.mark.parametrize("name", MODELS)
def test_identity_and_deletion(name):
    model = randomised(MODELS[name]())
    found = to_canonical(model, images(2))
    is_canonical(found.graph_module)
    assert len(found.notes) == name.endswith("own")
    names = ["a0", "m0", "a1", "m1"]
    if found.notes:
        assert "m0_opaque is not prunable" in found.notes[0]
        names = ["a0", "m1", "a1", "m2"]
    assert [site.name for site in read_sites(found.graph_module)] == names
    with torch.no_grad():
        for count in (1, 5):
            assert_equal(found.graph_module(images(count)), model(images(count)), 1e-6)
    assert_trainable(found.graph_module, images(2))

    exact = to_canonical(model.double(), PIXELS).graph_module
    plan = plan_of(exact, {"a0": [1, 3], names[1]: range(11), "a1": range(4)}, "position")
    assert_equal(rewrite(exact, plan).graph_module(PIXELS), ablated_logits(exact, plan, PIXELS), 1e-9)


@pytest.mark.parametrize("name", ["clip", "encoder with a step of its own"])
def test_files_and_rewrites(name, tmp_path):
    graph_module = to_canonical(randomised(MODELS[name]()), images(2)).graph_module
    artifact = rewrite(graph_module, plan_of(graph_module, {"a0": [1], "a1": [0, 2]})).graph_module.eval()
    loaded = decode(encode(artifact))
    loaded.load_state_dict(artifact.state_dict())
    assert torch.equal(loaded.eval()(images(3)), artifact(images(3)))
    lowered = lower(artifact, REWRITES, images(3))
    # CLIP's class token alone is read behind the last attention, and its patches go through a norm first.
    clip = name.startswith("clip")
    assert ("narrow_to_cls" in lowered.applied, "fold_patches" in lowered.applied) == (clip, not clip)
    export_onnx(lowered.graph_module, tmp_path / "pruned.onnx", images(2), {})
    assert compare_onnx(tmp_path / "pruned.onnx", artifact, images(5)) < 1e-4


@pytest.mark.parametrize("name", ["clip", "encoder with a step of its own"])
def test_a_graph_moves_to_another_device_as_a_whole(name):
    graph_module = to_canonical(randomised(MODELS[name]()), images(2)).graph_module.to("meta")
    assert graph_module(images(2).to("meta")).shape == (2, CLASSES)

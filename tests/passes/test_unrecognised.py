"""What is not recognised stays as it is, or is refused, with the true reason."""

import re

import pytest
import timm
import torch
from timm.layers import AttentionPoolLatent

from passes.mlp import Mlp
from passes.stream import read_sites
from tests.support.checks import assert_equal, assert_trainable
from tests.support.families import CLASSES, REFUSED, SIZE, HandWritten, images, randomised
from vitfx.graph.trace import to_canonical
from vitfx.support.errors import UserError


class Parallel(HandWritten):
    """Attention and MLP read the stream side by side, one of them with no norm."""

    def __init__(self, rule):
        super().__init__()
        self.rule = rule

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = x + self.rule(self, block, x)
        return self.head(x.mean(1))


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        (
            lambda model, block, x: model.attention(block, block["n1"](x)) + block["down"](block["up"](x)),
            r"linear\w* \(aten.linear.default\) reads the stream with no LayerNorm before it",
        ),
        (
            lambda model, block, x: block["down"](block["up"](x)) + model.attention(block, block["n1"](x)),
            r"linear\w* \(aten.linear.default\) reads the stream with no LayerNorm before it",
        ),
        (
            lambda model, block, x: model.attention(block, x),
            r"linear\w* \(aten.linear.default\) reads the stream with no LayerNorm before it",
        ),
    ],
)
def test_what_reads_the_stream_is_named(rule, reason):
    with pytest.raises(UserError, match=reason):
        to_canonical(randomised(Parallel(rule)), images(2))


class Sandwich(HandWritten):
    """A norm behind MLPs: of all, or of the second."""

    def __init__(self, odd=False):
        super().__init__()
        self.odd, self.behind = odd, torch.nn.LayerNorm(32)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        for number, block in enumerate(self.blocks):
            x = x + self.attention(block, block["n1"](x))
            hidden = block["down"](torch.relu(block["up"](block["n2"](x))))
            x = x + (hidden if self.odd and number != 1 else self.behind(hidden))
        return self.head(x.mean(1))


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_reason(name):
    build, reason = REFUSED[name]
    with pytest.raises(UserError, match=reason):
        to_canonical(randomised(build()), images(2))


def test_what_is_not_recognised_stays_and_is_named():
    model = randomised(Sandwich())
    found = to_canonical(model, images(2))
    assert [site.name for site in read_sites(found.graph_module)] == ["a0", "a1", "a2"]
    assert len(found.notes) == 3
    assert found.notes[0].endswith("besides its input (a sandwich norm)")
    with torch.no_grad():
        assert_equal(found.graph_module(images(3)), model(images(3)), 1e-5)
    assert_trainable(found.graph_module, images(2))


def test_names_keep_counting_past_what_is_not_recognised():
    found = to_canonical(randomised(Sandwich(odd=True)), images(2))
    assert [site.name for site in read_sites(found.graph_module)] == ["a0", "m0", "a1", "a2", "m2"]
    assert any(node.target == "m1_opaque" for node in found.graph_module.graph.nodes)


def test_attention_pooling_of_another_form_stays_and_is_named():
    """Here it adds positions to what it pools."""
    model = timm.models.VisionTransformer(
        img_size=SIZE, patch_size=8, depth=3, num_heads=4, embed_dim=32, num_classes=CLASSES,
        class_token=False, global_pool="map",
    )  # fmt: skip
    model.attn_pool = AttentionPoolLatent(32, num_heads=4, pos_embed="abs", feat_size=16, norm_layer=torch.nn.LayerNorm)
    found = to_canonical(randomised(model), images(2))
    assert [site.name for site in read_sites(found.graph_module)] == ["a0", "m0", "a1", "m1", "a2", "m2"]
    assert [note.partition(" is not prunable: ")[2] for note in found.notes] == [
        "linear_13 does not read the normalised stream",
        "it has 1 tokens where the stream begins with 16",
    ]
    with torch.no_grad():
        assert_equal(found.graph_module(images(5)), model(images(5)), 1e-5)


class Strange(HandWritten):
    """Computed positions, steps that put the tokens before the batch, one attention in windows."""

    def attention(self, block, x):
        if block is not self.blocks[1]:
            return super().attention(block, x)
        windows = block["qkv"](x.reshape(4 * x.shape[0], 4, 32))
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in windows.chunk(3, -1))
        pattern = (q @ k.transpose(-2, -1) / 4).softmax(-1, dtype=torch.float32).to(q.dtype)
        return block["proj"]((pattern @ v).transpose(1, 2).reshape(x.shape))

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = x + torch.arange(16.0, device=x.device)[:, None].sin()
        for block in self.blocks:
            x = x + self.attention(block, block["n1"](x))
            x = block["down"](torch.relu(block["up"](block["n2"](x)))) + x
            x = x.transpose(0, 1).reshape(-1, 32).tanh().reshape(16, -1, 32).transpose(0, 1)
        return self.head(x.mean(1))


def test_windows_and_steps_between_layers_stay():
    model = randomised(Strange())
    found = to_canonical(model, images(2))
    assert [site.name for site in read_sites(found.graph_module)] == ["a0", "m0", "m1", "a2", "m2"]
    assert [note.partition(" is not prunable: ")[2] for note in found.notes] == [
        "it replaces the stream and adds nothing to it",
        "its attention runs over 4 positions at a time where the stream has 16 tokens (windows)",
        "it replaces the stream and adds nothing to it",
    ]
    with torch.no_grad():
        assert_equal(found.graph_module(images(5)), model(images(5)), 1e-5)
    # Nothing holds the parts that were not rewritten to the device and the type that they were traced in.
    assert not any("device" in node.kwargs for node in found.graph_module.embed.graph.nodes)
    assert found.graph_module.double()(images(2, torch.float64)).dtype == torch.float64


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        (
            lambda block, x: block["down"](block["up"](1.5 * x).relu()),
            r"^linear\w* reads mul\w* and not the norm ",
        ),
        (
            lambda block, x: block["down"](block["up"](x).relu()).flip(1).flip(1),
            r"^flip\w* \(aten.flip.default\) stands",
        ),
        (
            lambda block, x: block["down"](block["up"](x).relu()).transpose(1, 2).transpose(1, 2),
            r"^transpose\w* \(aten.transpose.int\) moves the tokens behind linear",
        ),
    ],
)
def test_the_reason_against_an_mlp_is_the_true_one(rule, reason):
    class Mixed(HandWritten):
        def forward(self, x):
            x = self.patches(x).flatten(2).transpose(1, 2)
            for block in self.blocks:
                x = x + self.attention(block, block["n1"](x))
                x = x + rule(block, block["n2"](x))
            return self.head(x.mean(1))

    note = to_canonical(randomised(Mixed()), images(2)).notes[0]
    assert re.search(reason, note.removeprefix("m0_opaque is not prunable: ")), note


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda x: x * (1.702 * x).sigmoid(), "quick_gelu"),
        (lambda x: x.sigmoid() * x, "silu"),
        (lambda x: x * (x / 2**0.5).erf().add(1) / 2, "gelu"),
    ],
)
def test_what_multiplies_itself_is_no_gate(function, name):
    class Written(HandWritten):
        def forward(self, x):
            x = self.patches(x).flatten(2).transpose(1, 2)
            for block in self.blocks:
                x = x + self.attention(block, block["n1"](x))
                x = x + block["down"](function(block["up"](block["n2"](x))))
            return self.head(x.mean(1))

    modules = [site.module for site in read_sites(to_canonical(randomised(Written()), images(2)).graph_module)]
    assert [(type(module), module.activation) for module in modules[1::2]] == [(Mlp, name)] * 3


def test_a_gain_without_a_norm_is_named():
    class Gained(HandWritten):
        def attention(self, block, x):
            q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in block["qkv"](x).chunk(3, -1))
            pattern = (q * torch.linspace(1, 2, q.shape[-1]) @ k.transpose(-2, -1)).softmax(-1)
            return block["proj"]((pattern @ v).transpose(1, 2).flatten(2))

    with pytest.raises(UserError, match=r"a gain of 16 channels stands behind \w+ with no norm before it"):
        to_canonical(randomised(Gained()), images(2))

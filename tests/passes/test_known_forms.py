"""What can't be pruned is told by its name: small models of timm and of torch, random weights."""

import pytest
import timm
import torch
from timm.layers import AttentionPool2d, RotAttentionPool2d
from torch import nn

from passes.stream import read_sites
from tests.support.checks import assert_equal
from tests.support.families import randomised
from vitfx.graph.trace import to_canonical
from vitfx.support.errors import UserError

SMALL = {"img_size": 32, "depth": 2, "embed_dim": 24, "num_heads": 2, "num_classes": 7}
RELATIVE = {"img_size": 32, "depth": 2, "num_classes": 7}
BEHIND = r"its output is normalised before it is added to the stream, and not its input \(residual-post-norm\)"
POST = r"the stream is normalised behind the sum, and not before the sublayer \(post-LN\)"


class Encoder(nn.Module):
    """torch's encoder behind a stem."""

    def __init__(self, **kwargs):
        super().__init__()
        self.stem = nn.Conv2d(3, 24, 8, 8)
        layer = nn.TransformerEncoderLayer(24, 2, 48, **kwargs)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(24, 7)
        self.tokens = 1 if kwargs.get("batch_first") else 0

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = x if self.tokens == 1 else x.transpose(0, 1)
        return self.head(self.encoder(x).mean(self.tokens))


class Pooled(nn.Module):
    """A timm ViT under a pooling of its tokens as a map."""

    def __init__(self, pool):
        super().__init__()
        self.body = timm.models.VisionTransformer(**{**SMALL, "num_classes": 0}, patch_size=8, class_token=False,
                                                  global_pool="")  # fmt: skip
        self.pool = pool

    def forward(self, x):
        x = self.body(x)
        return self.pool(x.transpose(1, 2).unflatten(-1, (4, 4)))


def timm_model(name, **kwargs):
    return lambda: timm.create_model(name, **kwargs)


REFUSED = {
    "differential and parallel": (timm_model("vit_dpwee_patch16_reg1_gap_256", **SMALL), r"\(differential attention\)"),
    "differential": (timm_model("vit_dwee_patch16_reg1_gap_256", **SMALL), r"\(differential attention\)"),
    "residual-post-norm": (timm_model("vit_base_patch16_rpn_224", **SMALL), BEHIND),
    "residual-post-norm with relative positions": (timm_model("vit_relpos_small_patch16_rpn_224", **RELATIVE), BEHIND),
    "Eva": (timm_model("eva02_enormous_patch14_clip_224", **SMALL | {"img_size": 28}), BEHIND),
    "post-LN": (lambda: Encoder(batch_first=True), POST),
    "post-LN, tokens first": (lambda: Encoder(activation="gelu"), POST),
    "talking heads": (timm_model("cait_xxs24_224", **SMALL), r"\(talking heads\)"),
    "cross-covariance": (timm_model("xcit_nano_12_p16_224", **SMALL), r"\(cross-covariance attention\)"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_form_that_can_not_be_pruned_is_named(name):
    build, reason = REFUSED[name]
    model = randomised(build())
    with pytest.raises(UserError, match=reason):
        to_canonical(model, torch.randn(2, 3, *getattr(model.patch_embed, "img_size", (32, 32))) if hasattr(
            model, "patch_embed") else torch.randn(2, 3, 32, 32))  # fmt: skip


@pytest.mark.parametrize(
    "pool",
    [
        lambda: AttentionPool2d(24, feat_size=4, out_features=7, embed_dim=24, num_heads=2),
        lambda: RotAttentionPool2d(24, ref_feat_size=4, out_features=7, embed_dim=24, num_heads=2),
        lambda: AttentionPool2d(24, feat_size=4, out_features=7, embed_dim=24, num_heads=2, qkv_separate=True),
    ],
)
def test_a_pooling_that_stays_is_named(pool):
    found = to_canonical(randomised(Pooled(pool())), torch.randn(2, 3, 32, 32))
    assert len(read_sites(found.graph_module)) == 4
    assert [note.partition(":")[0] for note in found.notes] == ["head is not prunable"]
    assert "AttentionPool2d" in found.notes[0]


@pytest.mark.parametrize("name", ["tnt_s_patch16_224", "tnt_s_legacy_patch16_224"])
def test_a_transformer_in_a_transformer_is_named(name):
    model = randomised(timm.create_model(name, depth=2, embed_dim=24, inner_dim=8, num_heads_outer=2,
                                         num_heads_inner=2, img_size=32, num_classes=7))  # fmt: skip
    pixels = torch.randn(3, 3, 32, 32)
    found = to_canonical(model, pixels[:2])
    assert [site.name for site in read_sites(found.graph_module)] == ["a0", "m0"]
    assert "TNT has two streams" in found.notes[0]
    with torch.no_grad():
        assert_equal(found.graph_module(pixels), model(pixels), 1e-5)


def test_probabilities_are_no_attention():
    class Dense(Encoder):
        def forward(self, x):
            x = self.stem(x).flatten(2).transpose(1, 2)
            return self.head(self.encoder(x)).softmax(-1)

    assert to_canonical(randomised(Dense(batch_first=True, norm_first=True)), torch.randn(2, 3, 32, 32)).notes == ()

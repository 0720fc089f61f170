"""Every family's embedding is a product for each patch and a table; others are left alone, and it is said why."""

import pytest
import torch
from torch import nn

from passes.base import run_passes
from passes.deployment import PatchTokens
from passes.fold_patches import FoldPatches
from tests.support.checks import canonical, check
from tests.support.families import FAMILIES, SIZE, images
from vitfx.graph.trace import to_canonical

PIXELS = images(3, torch.float64)
PREFIX = {
    "timm-layerscale-average-registers": 3,
    "timm-registers-after-positions": 2,
    "timm-distilled": 2,
    "hf-deit": 2,
    "hf-dinov2-registers": 5,
    "hf-dinov3": 3,
    "hand-written": 0,
    "careless": 0,
    "torch-encoder": 0,
    "timm-parallel-fused": 0,
}


@pytest.mark.parametrize("name", FAMILIES)
def test_embedding_and_positions_become_one_product_and_one_table(name):
    graph_module = canonical(name)
    positions = sum(node.name == "positions" for node in graph_module.graph.nodes)
    expected = graph_module(PIXELS).detach()
    made = check(
        FoldPatches(PIXELS), graph_module, PIXELS, expected, changes=True, nodes=-positions, tolerance=1e-12
    ).embed
    assert isinstance(made, PatchTokens)
    assert made.weight.shape == (32, 3, 8, 8)
    assert made.prefix == PREFIX.get(name, 1)
    assert made.table.shape == (16 + made.prefix, 32)


class Stem(nn.Module):
    """A ViT with another way to patches."""

    def __init__(self, patches: nn.Module, flip: bool = False) -> None:
        super().__init__()
        self.patches, self.flip = patches, flip
        self.positions = nn.Parameter(torch.randn(1, 16, 32))
        layer = nn.TransformerEncoderLayer(32, 4, 48, batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, nn.LayerNorm(32), enable_nested_tensor=False)
        self.head = nn.Linear(32, 7)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        return self.head(self.encoder((x.flip(1) if self.flip else x) + self.positions).mean(1))


class Bent(nn.Conv2d):
    """Linear to a millionth."""

    def forward(self, x):
        patches = super().forward(x)
        return patches + 1e-6 * patches.relu()


@pytest.mark.parametrize(
    ("patches", "flip", "reason"),
    [
        (nn.Conv2d(3, 32, 9, 8, padding=1), False, "patches do not tile the image"),
        (nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.ReLU(), nn.Conv2d(8, 32, 2, 2)), False, "no sum of a linear map"),
        (Bent(3, 32, 8, 8), False, "no sum of a linear map"),
        (nn.Conv2d(3, 32, 8, 8), True, "not that of the last patch"),
        (nn.Conv2d(3, 32, 4, 8), False, "not that of the last patch"),
    ],
)
def test_another_embedding_stays_as_it_is(patches, flip, reason):
    model = Stem(patches, flip).eval()
    graph_module = to_canonical(model, images(2)).graph_module.double()
    check(FoldPatches(PIXELS), graph_module, PIXELS, graph_module(PIXELS).detach(), changes=False, nodes=0)
    (note,) = run_passes(graph_module, [FoldPatches(PIXELS)]).notes
    assert reason in note


@pytest.mark.parametrize("stem", ["act", "overlap"])
def test_a_stem_is_told_by_a_few_images(stem, monkeypatch):
    """No image for each pixel of what a token sees is run before that is known to tell anything."""
    parts = {
        "act": (nn.Conv2d(3, 8, 4, 4), nn.GELU(), nn.Conv2d(8, 32, 2, 2)),
        "overlap": (nn.Conv2d(3, 8, 8, 8, padding=0), nn.Conv2d(8, 32, 3, 1, padding=1)),
    }
    monkeypatch.setattr("passes.fold_patches._weight", lambda *_: pytest.fail("every pixel is tried"))
    graph_module = to_canonical(Stem(nn.Sequential(*parts[stem])).eval(), images(2)).graph_module
    assert not run_passes(graph_module, [FoldPatches(images(2))]).changed


def test_two_convolutions_without_anything_between_are_one_product():
    model = Stem(nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.Conv2d(8, 32, 2, 2))).eval()
    graph_module = to_canonical(model, torch.randn(2, 3, SIZE, SIZE)).graph_module.double()
    expected = graph_module(PIXELS).detach()
    check(FoldPatches(PIXELS), graph_module, PIXELS, expected, changes=True, tolerance=1e-12)


def test_float32_weights_are_the_models_own_to_rounding():
    graph_module = canonical("torchvision").float()
    made = run_passes(graph_module, [FoldPatches(PIXELS)]).graph_module
    own = dict(graph_module.embed.named_parameters())["p1_conv_proj_weight"]
    assert made.embed.weight.dtype == torch.float32
    assert torch.allclose(made.embed.weight, own, rtol=1e-6, atol=1e-8)

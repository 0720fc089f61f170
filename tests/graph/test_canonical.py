"""vitfx.graph.canonical: models that can't be proved about are refused, and what is told of their weights is true."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from vitfx.graph.canonical import read_module
from vitfx.models.vit import ViT
from vitfx.support.errors import UserError
from vitfx.support.progress import Silent

SIZES = {"image_size": 8, "patch_size": 4, "channels": 3, "classes": 3, "width": 8, "depth": 2, "heads": 2, "mlp": 8}


class Noisy(nn.Module):
    """Draws random numbers in eval mode too."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.model, self.kind = ViT(**SIZES), kind

    def forward(self, images: Tensor) -> Tensor:
        if self.kind == "images":
            return self.model(images + torch.randn_like(images))
        if self.kind == "dropout":
            return nn.functional.dropout(self.model(images), 0.5, training=True)
        return self.model(images) + torch.rand(3)


@pytest.mark.parametrize("kind", ["images", "dropout", "logits"])
def test_random_models_are_refused(kind: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(UserError, match="two calls differ for the same images"):
        read_module(Noisy(kind).eval(), torch.randn(4, 3, 8, 8), Silent())


@pytest.mark.parametrize("shared", [True, False])
def test_only_shared_weights_are_told(shared: bool) -> None:
    torch.manual_seed(0)
    model = ViT(**SIZES).eval()
    for weight in model.parameters():
        nn.init.normal_(weight, std=0.2)
    if shared:
        model.blocks[1] = model.blocks[0]
    notes = read_module(model, torch.randn(4, 3, 8, 8), Silent()).notes
    assert any("shares weights" in note for note in notes) == shared


def test_zero_key_biases_are_not_shared() -> None:
    torch.manual_seed(0)
    beit = timm.models.Beit(img_size=8, patch_size=4, embed_dim=8, depth=2, num_heads=2, num_classes=3).eval()
    for weight in beit.parameters():
        nn.init.normal_(weight, std=0.2)
    notes = read_module(beit, torch.randn(4, 3, 8, 8), Silent()).notes
    assert not any("shares weights" in note for note in notes)

"""A small, randomly initialised model of every kind of answer, and the divergences written out anew."""

from __future__ import annotations

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

from tests.support.families import randomised

SMALL = {"img_size": 32, "patch_size": 8, "depth": 3, "num_heads": 4, "embed_dim": 32, "mlp_ratio": 1.5}


class Behind(nn.Module):
    """A model with something behind it."""

    def __init__(self, model: nn.Module, last: nn.Module) -> None:
        super().__init__()
        self.model, self.last = model, last

    def forward(self, pixels: Tensor) -> Tensor:
        return self.last(self.model(pixels))


class Tokens(nn.Module):
    """All tokens of a ViT, (N, T, D)."""

    def __init__(self) -> None:
        super().__init__()
        self.model = VisionTransformer(**SMALL, num_classes=0)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model.forward_features(pixels)


class Pixels(Tokens):
    """Five numbers for each pixel, (N, 5, H, W)."""

    def __init__(self, channels: int = 5) -> None:
        super().__init__()
        self.head = nn.Conv2d(32, channels, 1)

    def forward(self, pixels: Tensor) -> Tensor:
        tokens = self.model.forward_features(pixels)[:, 1:]
        maps = self.head(tokens.transpose(1, 2).unflatten(2, (4, 4)))
        return F.interpolate(maps, scale_factor=2, mode="nearest")


class Squeezed(nn.Module):
    """Without the axis of its one answer, (N,)."""

    def forward(self, answers: Tensor) -> Tensor:
        return answers[:, 0]


class Unit(nn.Module):
    def forward(self, answers: Tensor) -> Tensor:
        return F.normalize(answers, dim=-1)


def vit(classes: int) -> nn.Module:
    return VisionTransformer(**SMALL, num_classes=classes)


MODELS = {
    "classes": lambda: vit(7),
    "probabilities": lambda: Behind(vit(7), nn.Softmax(-1)),
    "one logit": lambda: vit(1),
    "one logit without axis": lambda: Behind(vit(1), Squeezed()),
    "labels": lambda: vit(5),
    "label probabilities": lambda: Behind(vit(5), nn.Sigmoid()),
    "embedding": lambda: vit(0),
    "unit embedding": lambda: Behind(vit(6), Unit()),
    "values": lambda: vit(3),
    "one value": lambda: vit(1),
    "tokens": Tokens,
    "pixels": Pixels,
}
"""By name; the kind of each is in `KIND`."""
KIND = {
    "classes": "classes",
    "probabilities": "classes",
    "one logit": "labels",
    "one logit without axis": "labels",
    "labels": "labels",
    "label probabilities": "labels",
    "embedding": "embedding",
    "unit embedding": "embedding",
    "values": "values",
    "one value": "values",
    "tokens": "dense",
    "pixels": "dense",
}


def make(name: str, seed: int = 0) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return randomised(MODELS[name]())


def written_out(name: str, clean: Tensor, other: Tensor) -> Tensor:
    """The divergence of each image by torch's own losses. clean: of all images, for the scale of values."""
    if name == "classes":
        return F.kl_div(other.log_softmax(-1), clean.log_softmax(-1), log_target=True, reduction="none").sum(-1)
    if name == "probabilities":
        return F.kl_div(other.log(), clean, reduction="none").sum(-1)
    if KIND[name] == "labels":
        p, q = (each if name == "label probabilities" else each.sigmoid() for each in (clean, other))
        crossed = F.binary_cross_entropy(q, p, reduction="none") - F.binary_cross_entropy(p, p, reduction="none")
        return crossed.reshape(len(clean), -1).mean(1)
    if KIND[name] == "embedding":
        return 1 - F.cosine_similarity(clean, other)
    mean = {"tokens": (0, 1), "pixels": (0, 2, 3)}.get(name, (0,))
    whole = (clean - clean.mean(mean, keepdim=True)).square().sum() / len(clean)
    return (other - clean).square().reshape(len(clean), -1).sum(1) / whole

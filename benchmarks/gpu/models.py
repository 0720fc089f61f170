"""Models without a download: a random ViT-S and ViT-B, and the demo with its digits."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F
from torchvision.models import VisionTransformer

from benchmarks.gpu.sizes import Shape, Sizes
from vitfx.graph.canonical import read_module
from vitfx.images.image_set import Images
from vitfx.images.splits import open_data
from vitfx.models.checkpoint import load_model
from vitfx.models.vit import ViT
from vitfx.support.progress import Silent

DEMO, SMALL, BASE = "demo", "vit-s", "vit-b"
_SPREAD = 2.0
"""Standard deviation of each logit over the images: without it, a random model answers all images alike."""


@dataclass(frozen=True)
class Subject:
    """A model, its canonical graph and images, all on the CPU."""

    name: str
    module: nn.Module
    graph_module: GraphModule
    images: Images
    notes: tuple[str, ...]  #: what of the model was not recognised
    trace_seconds: float

    @property
    def pixels(self) -> Tensor:
        return self.images.pixels


def build_subject(name: str, sizes: Sizes, seed: int) -> Subject:
    """name: `DEMO`, `SMALL` or `BASE`. The same seed gives the same weights and images."""
    if name == DEMO:
        demo = load_model("demo")
        digits = open_data("digits", demo.preprocess, demo.classes).calibration
        module, images = demo.module, digits.sample(sizes.demo_images, seed).load()
    else:
        shape = sizes.small if name == SMALL else sizes.base
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = small_vit(shape) if name == SMALL else _base_vit(shape)
        pixels = patterns(sizes.images, shape.image, seed)
        spread_logits(module, pixels[:8])
        images = Images(pixels, None, tuple(map(str, range(sizes.images))))
    began = time.perf_counter()
    front = read_module(module, images.pixels, Silent())
    return Subject(name, module, front.graph_module, images, front.notes, time.perf_counter() - began)


def small_vit(shape: Shape) -> ViT:
    return ViT(
        image_size=shape.image,
        patch_size=shape.patch,
        classes=shape.classes,
        width=shape.width,
        depth=shape.depth,
        heads=shape.heads,
        mlp=shape.mlp,
    ).eval()


def _base_vit(shape: Shape) -> VisionTransformer:
    return VisionTransformer(
        image_size=shape.image,
        patch_size=shape.patch,
        num_layers=shape.depth,
        num_heads=shape.heads,
        hidden_dim=shape.width,
        mlp_dim=shape.mlp,
        num_classes=shape.classes,
    ).eval()


def patterns(count: int, size: int, seed: int) -> Tensor:
    """Smooth coloured patches with noise on them, (count, 3, size, size): noise alone looks the same to a ViT."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 4, 4, generator=generator)
    smooth = F.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=False)
    return smooth + 0.3 * torch.randn(count, 3, size, size, generator=generator)


@torch.no_grad()
def spread_logits(module: nn.Module, pixels: Tensor) -> None:
    """Scales the classifier's weights, and centres each class on these images."""
    head = [part for part in module.modules() if isinstance(part, nn.Linear)][-1]
    nn.init.normal_(head.weight, generator=torch.Generator().manual_seed(0))
    nn.init.zeros_(head.bias)
    logits = module(pixels)
    scale = _SPREAD / logits.std(0).mean()
    head.weight.mul_(scale)
    head.bias.copy_(-scale * logits.mean(0))

"""Corrupted inputs: for each image a counterfactual that lacks what the model is asked for.

Circuit discovery replaces an edge's activation with the one of a corrupted input (Conmy et al. 2023,
"Towards Automated Circuit Discovery", section 2: interchange with a corrupted datapoint; `swap` is its
resampling from another input, as in causal scrubbing, Chan et al. 2022). Every kind is a function of the
images and the seed alone: the global random state is neither read nor changed.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torchvision.transforms.v2 import functional as F

from vitfx.images.splits import Images
from vitfx.support.errors import UserError


def corrupt(images: Images, kind: str, seed: int) -> torch.Tensor:
    """The counterfactual of each image: float32 (N, C, H, W), in the order of `images`.

    Pass the whole set at once: `swap` takes its partners and `noise` its scale from it.

    swap: another image, of another class where labels are there. A permutation of the images, unless one
        class is more than half of them: then some images stand in for several.
    noise: the image plus Gaussian noise with the set's own standard deviation of each channel (signal and
        noise are equally strong).
    blur: Gaussian blur with σ = a eighth of the side, which leaves the layout of colours.
    shuffle: patches in random order, another for each image; a patch's side is the divisor of the image's
        side that is nearest to a quarter of it, so that 4 x 4 patches are the rule.

    Raises UserError for an unknown kind, and for swap with one image or one class.
    """
    if kind not in _KINDS:
        raise UserError(f"corruption {kind!r} is not known: choose one of {', '.join(CORRUPTIONS)}")
    return _KINDS[kind](images, torch.Generator().manual_seed(seed))


def _swap(images: Images, generator: torch.Generator) -> torch.Tensor:
    """Images stand in order of class, and each takes the one that is `shift` further round the circle.

    With every class at most `shift` long, and the rest of the circle as long, none meets its own class.
    """
    count = len(images.pixels)
    if count < 2:
        raise UserError("corruption swap needs another image and there is one only: give more samples")
    labels = torch.arange(count) if images.labels is None else images.labels.cpu()
    _, codes, sizes = labels.unique(return_inverse=True, return_counts=True)
    if len(sizes) == 1:
        raise UserError(
            f"corruption swap needs images of two classes and all {count} are of class {int(labels[0])}:"
            f" give more samples or choose another corruption"
        )
    shuffled = torch.randperm(count, generator=generator)
    class_order = torch.randperm(len(sizes), generator=generator)
    circle = shuffled[class_order[codes[shuffled]].argsort(stable=True)]
    longest = min(int(sizes.max()), count // 2)
    shift = int(torch.randint(longest, count - longest + 1, (), generator=generator))
    partner = torch.empty(count, dtype=torch.int64)
    partner[circle] = circle.roll(-shift)
    for index in (codes[partner] == codes).nonzero().flatten():
        others = (codes != codes[index]).nonzero().flatten()
        partner[index] = others[torch.randint(len(others), (), generator=generator)]
    return images.pixels[partner.to(images.pixels.device)]


def _noise(images: Images, generator: torch.Generator) -> torch.Tensor:
    pixels = images.pixels
    sigma = pixels.std(dim=(0, 2, 3), correction=0, keepdim=True)
    # Drawn on the CPU so that every device sees the same noise.
    return pixels + sigma * torch.randn(pixels.shape, generator=generator).to(pixels)


def _blur(images: Images, generator: torch.Generator) -> torch.Tensor:
    height, width = images.pixels.shape[-2:]
    # One axis after the other is the same blur, without the square of the kernel's length in work.
    down = F.gaussian_blur(images.pixels, [1, _kernel(height)], [1.0, height / 8])
    return F.gaussian_blur(down, [_kernel(width), 1], [width / 8, 1.0])


def _kernel(side: int) -> int:
    """Two standard deviations to each side; reflection needs less than the side."""
    return 2 * min(math.ceil(side / 4), side - 1) + 1


def _shuffle(images: Images, generator: torch.Generator) -> torch.Tensor:
    height, width = (_patch(side) for side in images.pixels.shape[-2:])
    patches = rearrange(images.pixels, "n c (y h) (x w) -> n (y x) c h w", h=height, w=width)
    order = torch.rand(patches.shape[:2], generator=generator).argsort(dim=1).to(patches.device)
    moved = torch.stack([patch[places] for patch, places in zip(patches, order, strict=True)])
    return rearrange(moved, "n (y x) c h w -> n c (y h) (x w)", x=images.pixels.shape[-1] // width)


def _patch(side: int) -> int:
    divisors = [patch for patch in range(1, side + 1) if side % patch == 0]
    return min(divisors, key=lambda patch: abs(patch - side / 4))


_KINDS = {"swap": _swap, "noise": _noise, "blur": _blur, "shuffle": _shuffle}
CORRUPTIONS: tuple[str, ...] = tuple(_KINDS)

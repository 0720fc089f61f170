"""Corrupted inputs: for each image a counterfactual that lacks what the model is asked about.

Circuit discovery replaces an edge's activation with that of a corrupted input (Conmy et al. 2023, "Towards Automated
Circuit Discovery", section 2: interchange with a corrupted datapoint; `swap` is its resampling from another input, as
in causal scrubbing, Chan et al. 2022). Every corruption depends on the images and the seed alone: the global random
state is neither read nor changed.
"""

from __future__ import annotations

import math

import torch
from einops import rearrange
from torchvision.transforms.v2 import functional as F

from vitfx.discovery.basis.settings import CORRUPTIONS
from vitfx.images.splits import Images
from vitfx.support.errors import UserError


def corrupt(images: Images, kind: str, seed: int) -> torch.Tensor:
    """The counterfactual of each image: float32 (N, C, H, W), in the order of `images`.

    Pass the whole set at once: `swap` and `same-class` take their partners from it, `noise` its scale and `mean-patch`
    its means.

    swap: another image, of another class if there are labels. A permutation of the images, unless more than half of
        them are of one class: then some images stand in for several.
    noise: the image plus Gaussian noise with the set's own standard deviation of each channel, as strong as the signal.
    blur: Gaussian blur with σ = an eighth of the side, which leaves the layout of colours.
    shuffle: patches in random order, drawn anew for each image. A patch's side is the divisor of the image's side that
        is nearest to a quarter of it, so usually there are 4 × 4 patches.
    mean-patch: each patch is the mean of all images' patches at its position, so that every image has the same
        counterfactual. A model's embedding of it, being linear, is the mean of their embeddings.
    same-class: another image of the same class, a permutation of the images. What it changes is not about the class.

    Raises UserError for an unknown corruption, for swap with a single class, for same-class without labels or with an
    image that is alone in its class, and for swap and mean-patch with a single image.
    """
    if kind not in CORRUPTIONS:
        raise UserError(f"corruption {kind!r} is not known: choose one of {', '.join(CORRUPTIONS)}")
    corruptions = {
        "swap": _swap,
        "noise": _noise,
        "blur": _blur,
        "shuffle": _shuffle,
        "mean-patch": _mean_patch,
        "same-class": _same_class,
    }
    return corruptions[kind](images, torch.Generator().manual_seed(seed))


def _swap(images: Images, generator: torch.Generator) -> torch.Tensor:
    """Lays the images out in a circle, class by class; each gets the one `shift` places further on.

    No image meets its own class if no class is longer than `shift`, or than the rest of the circle.
    """
    count = len(images.pixels)
    if count < 2:
        raise UserError("corruption swap needs two images and there is only one: give more samples")
    classes = _classes(images)
    labels = torch.arange(count) if classes is None else classes
    _, codes, sizes = labels.unique(return_inverse=True, return_counts=True)
    if len(sizes) == 1:
        raise UserError(
            f"corruption swap needs images of two classes and all {count} are of class {int(labels[0])}: "
            "give more samples or choose another corruption"
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


def _classes(images: Images) -> torch.Tensor | None:
    """Each image's class, on the CPU. Labels of which an image has several, and numbers, are no classes."""
    labels = images.labels
    return None if labels is None or labels.dim() != 1 or labels.is_floating_point() else labels.cpu()


def _same_class(images: Images, generator: torch.Generator) -> torch.Tensor:
    """Each class's images in a circle of random order: each gets the next one."""
    classes = _classes(images)
    if classes is None:
        raise UserError(
            "corruption same-class needs images with a class each: give labels or choose another corruption"
        )
    _, codes, sizes = classes.unique(return_inverse=True, return_counts=True)
    if alone := int((sizes == 1).sum()):
        raise UserError(
            f"corruption same-class needs two images of each class, and {alone} of {len(classes)} are alone in theirs: "
            "give more `samples` or fewer `classes`"
        )
    shuffled = torch.randperm(len(classes), generator=generator)
    circles = shuffled[codes[shuffled].argsort(stable=True)].split(sizes.tolist())
    partner = torch.empty_like(shuffled)
    for circle in circles:
        partner[circle] = circle.roll(-1)
    return images.pixels[partner.to(images.pixels.device)]


def _mean_patch(images: Images, generator: torch.Generator) -> torch.Tensor:
    if len(images.pixels) < 2:
        raise UserError("corruption mean-patch needs two images and there is only one: give more samples")
    mean = images.pixels.double().mean(dim=0, keepdim=True).to(images.pixels)
    return mean.expand_as(images.pixels).clone()


def _noise(images: Images, generator: torch.Generator) -> torch.Tensor:
    pixels = images.pixels
    sigma = pixels.std(dim=(0, 2, 3), correction=0, keepdim=True)
    # Drawn on the CPU, so that every device sees the same noise.
    return pixels + sigma * torch.randn(pixels.shape, generator=generator).to(pixels)


def _blur(images: Images, generator: torch.Generator) -> torch.Tensor:
    height, width = images.pixels.shape[-2:]
    # Blurring one axis at a time gives the same, for twice the kernel's length in work instead of its square.
    down = F.gaussian_blur(images.pixels, [1, _kernel(height)], [1.0, height / 8])
    blurred: torch.Tensor = F.gaussian_blur(down, [_kernel(width), 1], [width / 8, 1.0])
    return blurred


def _kernel(side: int) -> int:
    """Two standard deviations each way, but less than the side, as the reflecting border needs."""
    return 2 * min(math.ceil(side / 4), side - 1) + 1


def _shuffle(images: Images, generator: torch.Generator) -> torch.Tensor:
    height, width = (_patch(side) for side in images.pixels.shape[-2:])
    patches = rearrange(images.pixels, "n c (y h) (x w) -> n (y x) c h w", h=height, w=width)
    order = torch.rand(patches.shape[:2], generator=generator).argsort(dim=1).to(patches.device)
    moved = torch.stack([patch[indices] for patch, indices in zip(patches, order, strict=True)])
    return rearrange(moved, "n (y x) c h w -> n c (y h) (x w)", x=images.pixels.shape[-1] // width)


def _patch(side: int) -> int:
    divisors = [patch for patch in range(1, side + 1) if side % patch == 0]
    return min(divisors, key=lambda patch: abs(patch - side / 4))

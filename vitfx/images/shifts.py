"""Images as a deployed model meets them: out of focus, or noisy. They show what a circuit or model keeps under a shift.

Both are like the third of five severities of ImageNet-C (Hendrycks & Dietterich 2019, arXiv:1903.12261), on images that
are preprocessed already. An image's shift depends on itself and its number alone, whichever others are with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F

_BLUR, _LEAST_BLUR = 3 / 224, 0.5
_NOISE = 0.5

Shift = Callable[[Tensor, Sequence[int], int], Tensor]
"""(N, C, H, W), each image's number and a seed -> as many shifted images."""


def blurred(pixels: Tensor, numbers: Sequence[int], seed: int) -> Tensor:
    """Gaussian blur with σ = 3 pixels of 224, and half a pixel of small images."""
    sides = pixels.shape[-1], pixels.shape[-2]
    sigmas = [max(_BLUR * side, _LEAST_BLUR) for side in sides]
    kernels = [_kernel(side, sigma) for side, sigma in zip(sides, sigmas, strict=True)]
    shifted: Tensor = F.gaussian_blur(pixels, kernels, sigmas)
    return shifted


def _kernel(side: int, sigma: float) -> int:
    """Three standard deviations each way, but less than the side, as the reflecting border needs."""
    return 2 * min(math.ceil(3 * sigma), side - 1) + 1


def noisy(pixels: Tensor, numbers: Sequence[int], seed: int) -> Tensor:
    """Gaussian noise of half the image's own standard deviation in each channel."""
    sigma = pixels.std(dim=(2, 3), correction=0, keepdim=True)
    # Drawn on the CPU, so that every device sees the same noise.
    seeds = torch.randint(2**31, (max(numbers) + 1,), generator=torch.Generator().manual_seed(seed)).tolist()
    drawn = [torch.randn(pixels.shape[1:], generator=torch.Generator().manual_seed(seeds[at])) for at in numbers]
    return pixels + _NOISE * sigma * torch.stack(drawn).to(pixels)


AS_THEY_ARE = "as they are"
SHIFTS: Mapping[str, Shift] = {"blurred": blurred, "noisy": noisy}

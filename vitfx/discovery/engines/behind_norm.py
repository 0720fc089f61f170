"""What removing an edge changes behind its reader's norm, computed exactly.

A gradient by the stream treats the norm as linear, which it is not: once a writer that made up much of what a reader
saw is gone, the norm scales up all the rest, and a removal that lowers D_KL along the tangent often raises it. With

    x̂ = (x − x̄) / σ(x),   Δ = (x + δ − mean) / σ(x + δ) − x̂,

gradients are taken by x̂ and multiplied by Δ, which needs only the products and variances of x and δ. Of a norm on a
norm that is the first; gradients go through the second.

Shapes: g gradients, R readers, W writers, n images, T tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from passes.norms import Norm, NormOnNorm, SingleNorm, plain, shift_of


class Rescale(nn.Module):
    """A norm's scale and shift alone, for a stream that is standardized already, and the norm on it if there is one."""

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        first = _first(norm)
        self.weight, self.bias = first.weight, shift_of(first)
        self.second = norm.second if isinstance(norm, NormOnNorm) else None

    def forward(self, standardized: Tensor) -> Tensor:
        scaled = standardized if self.weight is None else standardized * self.weight
        shifted: Tensor = scaled if self.bias is None else scaled + self.bias
        return shifted if self.second is None else self.second(shifted)


def standardized(norm: Norm, read: Tensor) -> Tensor:
    """x̂, in the shape of `read` (..., D)."""
    standardize: nn.Module = plain(_first(norm))
    result: Tensor = standardize(read)
    return result


def products(norm: Norm, gradients: Tensor, read: Tensor, changes: Tensor, signs: Tensor) -> Tensor:
    """The products of gradients by x̂ with Δ, for every reader and writer: (g, R·W, n). An RMSNorm subtracts no mean.

    gradients: (g, R, n, T, D).
    read: each reader's x, (R, n, T, D).
    changes: each writer's δ, (W, n, T, D).
    signs: (R, W): 1 where Δ leads from x to x + δ; −1 where x lacks the writer already, and Δ led there from x − δ.
    """
    width, eps = read.shape[-1], _epsilon(norm, read)
    x = read - read.mean(dim=-1, keepdim=True) if _centres(norm) else read
    variance = _per_token(x).square() / width + eps
    # Means are subtracted from the products and not from the large tensors. Token by token: (n, T, W, ·).
    across, mean = changes.permute(1, 2, 0, 3), changes.mean(dim=-1)
    if not _centres(norm):
        mean = torch.zeros_like(mean)
    shared = across @ x.permute(1, 2, 3, 0)
    means = torch.einsum("wnt,grnt->ntwgr", mean, gradients.mean(dim=-1))
    along = (
        torch.unflatten(across @ gradients.flatten(0, 1).permute(1, 2, 3, 0), -1, gradients.shape[:2]) - width * means
    )
    sign = signs.to(x).T
    own = (_per_token(changes).square() / width - mean.square()).permute(1, 2, 0).unsqueeze(-1)
    moved = variance.permute(1, 2, 0).unsqueeze(2) + 2 / width * sign * shared + own
    here = (gradients * x).sum(dim=-1).permute(2, 3, 0, 1).unsqueeze(2)
    # Rounding can make a variance of next to nothing negative.
    there = (here + sign.unsqueeze(1) * along) / moved.clamp(min=eps).sqrt().unsqueeze(3)
    difference = sign.unsqueeze(1) * (there - here / variance.sqrt().permute(1, 2, 0).unsqueeze(2).unsqueeze(3))
    return difference.sum(dim=1).permute(2, 3, 1, 0).flatten(1, 2)


def _first(norm: Norm) -> SingleNorm:
    """The norm that reads the stream."""
    return norm.first if isinstance(norm, NormOnNorm) else norm


def _centres(norm: Norm) -> bool:
    return isinstance(_first(norm), nn.LayerNorm)


def _epsilon(norm: Norm, read: Tensor) -> float:
    eps = _first(norm).eps
    return torch.finfo(read.dtype).eps if eps is None else eps


def _per_token(value: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(value, dim=-1)
    return norms

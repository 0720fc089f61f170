"""What removing an edge changes behind its reader's norm, where the change is known in full.

A gradient by the stream takes the norm for linear. It is not: without a writer that made much of what a reader saw, the
norm enlarges all the rest, and a removal that the tangent has lowering D_KL often raises it. With

    x̂ = (x − x̄) / σ(x),   Δ = (x + δ − mean) / σ(x + δ) − x̂,

gradients are taken by x̂ and multiplied by Δ, which takes no more than x's and δ's products and variances.

Shapes: g gradients, R readers, W writers, n images, T tokens, D width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passes.dialect import Norm


class Rescale(nn.Module):
    """A norm's scale and shift, for what is standardized already."""

    def __init__(self, norm: Norm) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias if isinstance(norm, nn.LayerNorm) else None

    def forward(self, standardized: Tensor) -> Tensor:
        scaled = standardized if self.weight is None else standardized * self.weight
        return scaled if self.bias is None else scaled + self.bias


def standardized(norm: Norm, read: Tensor) -> Tensor:
    """x̂, in read's shape (..., D)."""
    if isinstance(norm, nn.RMSNorm):
        return F.rms_norm(read, norm.normalized_shape, eps=norm.eps)
    return F.layer_norm(read, norm.normalized_shape, eps=norm.eps)


def products(norm: Norm, gradients: Tensor, read: Tensor, changes: Tensor, signs: Tensor) -> Tensor:
    """Gradients by x̂, (g, R, n, T, D), times Δ, for each reader's x (R, n, T, D) and each writer's δ (W, n, T, D):
    (g, R·W, n).

    signs: (R, W), 1 where Δ leads from x to x + δ; −1 where x is without the writer already and Δ leads there, from
    x − δ. An RMSNorm takes no means out.
    """
    width, eps = read.shape[-1], _epsilon(norm, read)
    x = read - read.mean(dim=-1, keepdim=True) if _centres(norm) else read
    variance = _per_token(x).square() / width + eps
    # Means are taken out of products, not of what is large. Token by token: (n, T, W, ·).
    across, mean = changes.permute(1, 2, 0, 3), changes.mean(dim=-1)
    if not _centres(norm):
        mean = torch.zeros_like(mean)
    shared = across @ x.permute(1, 2, 3, 0)
    means = torch.einsum("wnt,grnt->ntwgr", mean, gradients.mean(dim=-1))
    along = (across @ gradients.flatten(0, 1).permute(1, 2, 3, 0)).unflatten(-1, gradients.shape[:2]) - width * means
    sign = signs.to(x).T
    own = (_per_token(changes).square() / width - mean.square()).permute(1, 2, 0).unsqueeze(-1)
    moved = variance.permute(1, 2, 0).unsqueeze(2) + 2 / width * sign * shared + own
    here = (gradients * x).sum(dim=-1).permute(2, 3, 0, 1).unsqueeze(2)
    # Rounding may take what is next to nothing below it.
    there = (here + sign.unsqueeze(1) * along) / moved.clamp(min=eps).sqrt().unsqueeze(3)
    difference = sign.unsqueeze(1) * (there - here / variance.sqrt().permute(1, 2, 0).unsqueeze(2).unsqueeze(3))
    return difference.sum(dim=1).permute(2, 3, 1, 0).flatten(1, 2)


def _centres(norm: Norm) -> bool:
    return isinstance(norm, nn.LayerNorm)


def _epsilon(norm: Norm, read: Tensor) -> float:
    return torch.finfo(read.dtype).eps if norm.eps is None else norm.eps


def _per_token(value: Tensor) -> Tensor:
    return torch.linalg.vector_norm(value, dim=-1)

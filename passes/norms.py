"""What stands between the residual stream and a sublayer: LayerNorm, RMSNorm, or one of them on another."""

from __future__ import annotations

from torch import Tensor, nn

SINGLE = (nn.LayerNorm, nn.RMSNorm)
SingleNorm = nn.LayerNorm | nn.RMSNorm


class NormOnNorm(nn.Module):
    """second(first(x)). The second sees the first's scale and shift, so that the two are no single norm.

    Its readers see the second's scale and shift, which stand for its own.
    """

    def __init__(self, first: SingleNorm, second: SingleNorm) -> None:
        super().__init__()
        self.first, self.second = first, second

    @property
    def weight(self) -> Tensor | None:
        return self.second.weight

    @property
    def elementwise_affine(self) -> bool:
        return self.second.elementwise_affine

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.second(self.first(x))
        return normed


Norm = SingleNorm | NormOnNorm
NORMS = (*SINGLE, NormOnNorm)


def shift_of(norm: Norm) -> Tensor | None:
    """What the norm adds to each channel, (D,); an RMSNorm adds nothing."""
    last = norm.second if isinstance(norm, NormOnNorm) else norm
    return last.bias if isinstance(last, nn.LayerNorm) else None


def plain(norm: SingleNorm) -> SingleNorm:
    """The norm without scale and shift."""
    if isinstance(norm, nn.RMSNorm):
        return nn.RMSNorm(norm.normalized_shape, eps=norm.eps, elementwise_affine=False)
    return nn.LayerNorm(norm.normalized_shape, eps=norm.eps, elementwise_affine=False)

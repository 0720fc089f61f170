"""The deployment dialect: modules that exact rewrites put in place of a canonical graph's, for export alone.

They compute the same faster, and give up what training and pruning need: separate heads and neurons, a LayerNorm with
parameters of its own, one stream of the same tokens from end to end.

Shapes: B images, T tokens, n of them read, D the width of the stream, H heads, d channels of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from passes.attention_core import AttentionCore, split_heads
from passes.dialect import Attention, Projection


class TakeTokens(nn.Module):
    """The first `count` tokens: (B, T, D) -> (B, count, D)."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        return x[:, : self.count]

    def extra_repr(self) -> str:
        return f"first {self.count}"


class _DeployedAttention(nn.Module):
    """What the kinds of deployed attention share: as many heads of queries, keys and values, and a projection."""

    units: int  #: heads
    core: AttentionCore
    out: Projection

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        sizes: Tensor | None,
        positions: Tensor | None,
        *,
        keys: bool = False,
    ) -> Any:
        """(B, tokens, heads · channels) each -> (B, tokens of q, D), as `passes.dialect.Attention.forward` says."""
        added: Tensor = self.out(self.core(*(split_heads(part, self.units) for part in (q, k, v)), sizes, positions))
        return (added, self.core.mean_keys(k, self.units, positions)) if keys else added


class NarrowedAttention(_DeployedAttention):
    """Attention of all T tokens, asked by the first `count` alone: (B, T, D) -> (B, count, D)."""

    def __init__(self, whole: Attention, count: int, tokens: int) -> None:
        """Of the attention `whole`, whose core and projection are cut to these tokens (`passes.token_use.cut_tokens`).

        tokens: T, to weigh whether keys or the stream are cheaper to read.
        """
        super().__init__()
        self.q, self.k, self.v, self.out = whole.q, whole.k, whole.v, whole.out
        self.core, self.units = whole.core, whole.units
        self.count, self.tokens = count, tokens

    def forward(self, x: Tensor, sizes: Tensor | None = None, positions: Tensor | None = None) -> Any:
        return self.attend(self.q(x[:, : self.count]), self.k(x), self.v(x), sizes, positions)

    def extra_repr(self) -> str:
        return f"{self.units} heads, scale {self.core.scale:.4g}, queries: first {self.count}"


class AbsorbedAttention(nn.Module):
    """A NarrowedAttention that makes no keys and values: (B, T, D) -> (B, count, D).

    By associativity a query reads the normalised stream itself, through its head's key rows, and what it gathers there
    goes through the head's value rows: q (x Wkᵀ)ᵀ = (q Wk) xᵀ and P (x Wvᵀ) = (P x) Wvᵀ. Keys' biases move all scores
    of a query alike and drop out of the softmax; values' biases come through it as they are, because it sums to one.
    """

    def __init__(self, narrowed: NarrowedAttention) -> None:
        super().__init__()
        heads = narrowed.units
        self.q, self.out = narrowed.q, narrowed.out
        self.units, self.scale, self.count = heads, narrowed.core.scale, narrowed.count
        key, value = (linear.weight.detach() for linear in (narrowed.k, narrowed.v))
        self.key = nn.Parameter(torch.unflatten(key, 0, (heads, -1)).clone())
        self.value = nn.Parameter(torch.unflatten(value, 0, (heads, -1)).mT.contiguous())
        bias = narrowed.v.bias
        self.value_bias = None if bias is None else nn.Parameter(bias.detach().view(heads, 1, -1).clone())

    def forward(self, x: Tensor, sizes: Tensor | None = None) -> Tensor:
        asked = self.q(x[:, : self.count]) * self.scale
        asked = asked.reshape(-1, self.units, self.key.shape[1]).transpose(0, 1)
        asked = (asked @ self.key).transpose(0, 1).reshape(-1, self.count * self.units, x.shape[2])
        scores = asked @ x.transpose(1, 2)
        scores = scores if sizes is None else scores + sizes.log().unsqueeze(1)
        gathered = scores.softmax(-1) @ x
        heads = gathered.reshape(-1, self.units, x.shape[2]).transpose(0, 1) @ self.value
        if self.value_bias is not None:
            heads = heads + self.value_bias
        added: Tensor = self.out(heads.transpose(0, 1).reshape(-1, self.count, self.units * self.value.shape[2]))
        return added

    def extra_repr(self) -> str:
        return f"{self.units} heads, scale {self.scale:.4g}, queries: first {self.count}"


class PackedAttention(_DeployedAttention):
    """Attention whose queries, keys and values are one product: (B, T, D) -> (B, T, D)."""

    def __init__(
        self, qkv: nn.Linear, core: AttentionCore, out: Projection, heads: int, sizes: tuple[int, int, int]
    ) -> None:
        """sizes: output rows of q, k and v in the packed weight."""
        super().__init__()
        self.qkv, self.core, self.out = qkv, core, out
        self.units, self.sizes = heads, sizes

    def forward(
        self, x: Tensor, sizes: Tensor | None = None, positions: Tensor | None = None, *, keys: bool = False
    ) -> Any:
        q, k, v = self.qkv(x).split(self.sizes, dim=-1)
        return self.attend(q, k, v, sizes, positions, keys=keys)

    def extra_repr(self) -> str:
        return f"{self.units} heads, scale {self.core.scale:.4g}, q k v of {'+'.join(map(str, self.sizes))} rows"


class PatchTokens(nn.Module):
    """Pixels (B, C, H, W) -> stream (B, T, D): a linear map of each patch, and one table for everything else.

    The table (T, D) holds positions, the convolution's bias, and before the patches `prefix` rows of tokens that no
    pixel reaches, such as the class token with its position.
    """

    def __init__(self, weight: Tensor, table: Tensor, prefix: int) -> None:
        """weight: of the convolution, (D, C, patch height, patch width); its stride is the patch."""
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone())
        self.table = nn.Parameter(table.detach().clone())
        self.prefix = prefix

    def forward(self, x: Tensor) -> Tensor:
        patches = F.conv2d(x, self.weight, stride=self.weight.shape[2:]).flatten(2).transpose(1, 2)
        padded = F.pad(patches, (0, 0, self.prefix, 0)) if self.prefix else patches
        return padded + self.table

    def extra_repr(self) -> str:
        height, width = self.weight.shape[2:]
        return f"{height}×{width} pixels, tokens before them: {self.prefix}"


def linear_of(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """A linear with these values: weight (out, in), bias (out,)."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None).to(weight)
    with torch.no_grad():
        linear.weight.copy_(weight)
        if bias is not None:
            linear.bias.copy_(bias)
    return linear

"""Attention pooling in the ViT dialect: learnt queries look at the stream, and what they gather is the new stream.

    stream' = fresh(stream) + pooled(norm(stream)),   fresh: as many tokens as there are queries, all zero

That is the form of every other sublayer, norm → sublayer → add, but for the stream that is added to. So heads are
deleted and constants left behind as everywhere, and a pool that loses all of its heads leaves its constant alone.

Shapes: B images, T tokens, n queries, D the width of the stream, H heads, d channels of a head's keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from passes.attention_core import AttentionCore
from passes.dialect import Heads, Projection


class FreshTokens(nn.Module):
    """A stream that begins anew: (B, T, D) -> zeros (B, count, D)."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(x.shape[0], self.count, x.shape[2])

    def config(self) -> dict[str, Any]:
        return {"count": self.count}

    def extra_repr(self) -> str:
        return "1 token" if self.count == 1 else f"{self.count} tokens"


class PooledAttention(Heads):
    """softmax(scale · Q Kᵀ) V for each head with learnt queries, then the projection: (B, T, D) -> (B, n, D).

    The pooling of Set Transformers (Lee et al. 2019, arXiv:1810.00825), the MAP head of SigLIP. biases: which of k, v
    have one. core: as in `passes.dialect.Attention`.
    """

    reads = ("k", "v")

    def __init__(
        self,
        width: int,
        heads: int,
        head_dim: int,
        value_dim: int,
        queries: int,
        scale: float,
        biases: tuple[bool, bool] = (True, True),
        out_bias: tuple[int, ...] | None = None,
        core: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(heads, head_dim, value_dim, AttentionCore.from_config(scale, core or {}))
        self.query = nn.Parameter(torch.empty(heads, queries, head_dim))
        self.k = nn.Linear(width, heads * head_dim, bias=biases[0])
        self.v = nn.Linear(width, heads * value_dim, bias=biases[1])
        self.out = Projection(heads * value_dim, width, out_bias)

    @property
    def queries(self) -> int:
        return self.query.shape[1]

    def inner(self, x: Tensor) -> Tensor:
        """The normalised stream (B, T, D) -> inner channels (B, n, units · channels)."""
        pooled: Tensor = self.core(self.query.repeat(x.shape[0], 1, 1, 1), *self.by_head(x))
        return pooled

    def config(self) -> dict[str, Any]:
        return {**super().config(), "queries": self.queries}

    def extra_repr(self) -> str:
        queries = "1 learnt query" if self.queries == 1 else f"{self.queries} learnt queries"
        return f"{super().extra_repr()}, {queries}"

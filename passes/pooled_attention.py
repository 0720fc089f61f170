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

from passes.attention_core import AttentionCore, InnerNorm, with_part
from passes.dialect import Projection, Sublayer


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


class PooledAttention(Sublayer):
    """softmax(scale · Q Kᵀ) V for each head with learnt queries, then the projection: (B, T, D) -> (B, n, D).

    The pooling of Set Transformers (Lee et al. 2019, arXiv:1810.00825), the MAP head of SigLIP. head_dim: channels of a
    head's keys; value_dim: of its values. biases: which of k, v have one. core: as in `passes.dialect.Attention`.
    """

    kind = "head"
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
        super().__init__()
        self.units, self.channels, self.head_dim = heads, value_dim, head_dim
        self.core = AttentionCore.from_config(scale, core or {})
        self.query = nn.Parameter(torch.empty(heads, queries, head_dim))
        self.k = nn.Linear(width, heads * head_dim, bias=biases[0])
        self.v = nn.Linear(width, heads * value_dim, bias=biases[1])
        self.out = Projection(heads * value_dim, width, out_bias)

    @property
    def inner_norm(self) -> InnerNorm | None:
        return self.core.out_norm

    def without_inner_norm(self) -> PooledAttention:
        return with_part(self, "core", with_part(self.core, "out_norm", None))

    @property
    def queries(self) -> int:
        return self.query.shape[1]

    def inner(self, x: Tensor) -> Tensor:
        """The normalised stream (B, T, D) -> inner channels (B, n, units · channels)."""
        k, v = (project(x).unflatten(-1, (self.units, -1)).transpose(1, 2) for project in self.linears)
        pooled: Tensor = self.core(self.query.repeat(x.shape[0], 1, 1, 1), k, v)
        return pooled

    def config(self) -> dict[str, Any]:
        core = self.core.config()
        return {
            "width": self.k.in_features,
            "heads": self.units,
            "head_dim": self.head_dim,
            "value_dim": self.channels,
            "queries": self.queries,
            "scale": self.core.scale,
            "biases": [linear.bias is not None for linear in self.linears],
            "out_bias": self._out_config(),
            **({"core": core} if core else {}),
        }

    def extra_repr(self) -> str:
        heads = "1 head" if self.units == 1 else f"{self.units} heads"
        queries = "1 learnt query" if self.queries == 1 else f"{self.queries} learnt queries"
        extras = "".join(f", {extra}" for extra in self.core.extras)
        return f"{heads} of {self.head_dim}, {queries}, scale {self.core.scale:.4g}{extras}"

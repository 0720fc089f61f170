"""Rotary positions: what turns queries and keys before attention compares them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Rotary(nn.Module):
    """Rotary positions (Su et al. 2021, arXiv:2104.09864): each pair of channels turns by an angle of its token.

    Channels i and i + d/2 are a pair; models that pair them otherwise have their projections' rows reordered, which no
    score sees, because queries and keys are reordered alike. With x = [a, b]: [a, b] ⊙ cos + [b, a] ⊙ sin, where the
    sign stands in `sin`. Class and register tokens, and channels that do not turn, have cos = 1 and sin = 0.

    cos, sin: (H or 1, T, d), constants. (N, H, T, d) -> the same. positions: int64 (N, T), of each image's tokens, by
    their numbers before any merged; None where none has.
    """

    cos: Tensor
    sin: Tensor

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("cos", torch.empty(*shape))
        self.register_buffer("sin", torch.empty(*shape))

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        cos, sin = self.cos, self.sin
        if positions is not None:
            cos, sin = (table[:, positions].transpose(0, 1) for table in (cos, sin))
        first, second = x.chunk(2, dim=-1)
        return x * cos + torch.cat((second, first), dim=-1) * sin

    def config(self) -> dict[str, Any]:
        return {"shape": list(self.cos.shape)}

    @staticmethod
    def of(cos: Tensor, sin: Tensor) -> Rotary:
        made = Rotary(cos.shape).to(cos)
        made.cos, made.sin = cos.detach().clone(), sin.detach().clone()
        return made

    def of_heads(self, heads: Sequence[int]) -> Rotary:
        if len(self.cos) == 1:
            return self
        return Rotary.of(self.cos[list(heads)], self.sin[list(heads)])

    def of_tokens(self, tokens: Tensor) -> Rotary:
        return Rotary.of(self.cos[:, tokens], self.sin[:, tokens])

    def extra_repr(self) -> str:
        return f"shape={tuple(self.cos.shape)}"

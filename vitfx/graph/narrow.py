"""Exact and free: behind the last attention only the tokens that the logits read are carried.

With a class token's classifier that spares most of the last layer: one query of 65 is left, one row of the projection,
of the norms and of the MLP. For the tokens that are left, the stages here give the very numbers of the whole model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from passes.dialect import Attention, Sublayer
from passes.token_use import by_token, cut_tokens, tokens_read
from vitfx.graph.stages import Reference, Stage, run_stages


@dataclass(frozen=True, kw_only=True)
class NarrowingStage(Stage):
    """The last attention: keys and values of all tokens, queries and output of some."""

    tokens: Tensor  #: int64, those that are its queries and that it passes on

    def inner(self, stream: Tensor, module: Sublayer | None = None) -> Tensor:
        """(N, T, D) -> (N, tokens, E)."""
        attention = self.module if module is None else module
        assert isinstance(attention, Attention) and self.norm is not None
        read = self.norm(stream)
        parts = (attention.q(read[:, self.tokens]), attention.k(read), attention.v(read))
        q, k, v = (part.unflatten(-1, (attention.units, -1)).transpose(1, 2) for part in parts)
        heads: Tensor = attention.core(q, k, v)
        return heads

    def carried(self, stream: Tensor) -> Tensor:
        return stream[:, self.tokens]


@dataclass(frozen=True, kw_only=True)
class WideningStage(Stage):
    """What needs the stream's whole shape back: tokens that nothing reads are zero."""

    tokens: Tensor  #: int64, those that are carried
    count: int  #: of all tokens

    def __call__(self, stream: Tensor) -> Tensor:
        whole = stream.new_zeros(stream.shape[0], self.count, stream.shape[2])
        result: Tensor = self.module(whole.index_copy(1, self.tokens, stream))
        return result


@dataclass(frozen=True)
class Narrowed:
    """A model's stages with the unread tokens left out."""

    stages: tuple[Stage, ...]
    start: int  #: the stage that narrows the stream
    end: int  #: the stage that widens it again
    tokens: Tensor | None  #: those that are carried between, None where all are

    def reference(self, reference: Reference) -> Reference:
        """The same reference for sublayers between: (T, E) and (N, T, E) become (tokens, E) and (N, tokens, E)."""
        names = {stage.name for stage in self.stages[self.start : self.end] if stage.sublayer is not None}
        return {name: self.cut(value) if name in names else value for name, value in reference.items()}

    def cut(self, value: Tensor) -> Tensor:
        """The tokens carried of (..., T, D); a value for all tokens, (D,), stays as it is."""
        return value if self.tokens is None or value.dim() == 1 else value[..., self.tokens, :]


@torch.no_grad()
def narrow(stages: Sequence[Stage], pixels: Tensor) -> Narrowed:
    """The stages without the tokens that no logit reads. pixels: two example images or more."""
    plain = tuple(stages)
    start = max((index for index, stage in enumerate(stages) if stage.norm is not None), default=-1)
    while start >= 0 and not isinstance(stages[start].module, Attention):
        start -= 1
    end = next((i for i in range(start + 1, len(stages)) if not by_token(stages[i].module)), len(stages))
    whole = Narrowed(plain, len(stages), len(stages), None)
    if start < 0 or end == len(stages) or any(stage.sublayer is not None for stage in stages[end:]):
        return whole
    stream = run_stages(stages[:end], pixels[:2])
    tail = nn.Sequential(*(stage.module for stage in stages[end:]))
    read = tokens_read(tail, stream)
    if len(read) == stream.shape[1]:
        return whole
    tokens = torch.tensor(read, device=stream.device)
    first, last = stages[start], stages[end]
    changed = [
        NarrowingStage(first.name, cut_tokens(first.module, tokens), first.norm, forks=first.forks, tokens=tokens),
        *(replace(stage, module=cut_tokens(stage.module, tokens)) for stage in stages[start + 1 : end]),
        WideningStage(name=last.name, module=last.module, tokens=tokens, count=stream.shape[1]),
    ]
    return Narrowed((*plain[:start], *changed, *plain[end + 1 :]), start, end, tokens)

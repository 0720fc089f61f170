"""Token merging in the ViT dialect (ToMe, Bolya et al. 2023, arXiv:2210.09461): alike tokens go on as their average.

    stream', sizes' = merge(stream, keys, sizes),   then softmax(scale · q kᵀ + log sizes') v in every attention behind

Tokens that may merge take turns as A and B. Each of A has its most alike in B, by the cosine of the keys' means over
the heads, and the `merged` closest pairs become one token each. Of equal values the lower index wins, which every
runtime is told by comparing indices, not by how its sort treats ties. Tokens are moved by products with matrices of
zeros and ones: no gathers with an index for each image, no scatters, and shapes that are known beforehand.

Shapes: B images, T tokens before and T' behind, p of them protected, A and C tokens of the two sets, d key channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MergeTokens(nn.Module):
    """(B, T, D) -> (B, T − merged, D): the protected, those of A that stay, and B, each in their order.

    protected: how many of the first tokens never merge. tracks: whether it says which token went where. turns: whether
    it says which positions are kept, for rotary ones: of tokens that merge into another, that one's.
    """

    def __init__(self, protected: int, merged: int, *, tracks: bool = False, turns: bool = False) -> None:
        super().__init__()
        self.protected, self.merged, self.tracks, self.turns = protected, merged, tracks, turns

    def forward(
        self,
        x: Tensor,
        keys: Tensor,
        sizes: Tensor | None = None,
        groups: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        """The stream, and sizes (B, T'): of how many tokens each is the average; then groups and positions, where it
        tracks and turns.

        keys: (B, T, d). sizes: (B, T), None where each is one. groups: int64 (B, tokens of old), None where none has
        merged: which token now stands for each of those that the model began with. positions: int64 (B, T), None alike.
        """
        first = self.protected
        partner, merged = self._pairs(keys)
        place = torch.logical_not(merged).to(x.dtype).cumsum(-1) - 1
        kept = _one_hot(place, partner.shape[1] - self.merged, torch.logical_not(merged)).to(x.dtype)
        into = _one_hot(partner, x.shape[1] - first - partner.shape[1], merged).to(x.dtype)
        a, b = x[:, first::2], x[:, first + 1 :: 2]
        stay = self.protected + kept.shape[1]
        if sizes is None:
            grown = into.sum(-1) + 1
            met = (b + into @ a) / grown.unsqueeze(-1)
            counts = F.pad(grown, (stay, 0), value=1.0)
        else:
            size_a, size_b = sizes[:, first::2].unsqueeze(-1), sizes[:, first + 1 :: 2].unsqueeze(-1)
            grown = size_b + into @ size_a
            met = (b * size_b + into @ (a * size_a)) / grown
            counts = torch.cat([sizes[:, :first], (kept @ size_a).squeeze(-1), grown.squeeze(-1)], dim=1)
        parts = [*([x[:, :first]] if first else []), kept @ a, met]
        result = [torch.cat(parts, dim=1), counts]
        result += [self._groups(x, merged, partner, place, groups)] if self.tracks else []
        return (*result, self._positions(x, kept, positions)) if self.turns else tuple(result)

    def _positions(self, x: Tensor, kept: Tensor, positions: Tensor | None) -> Tensor:
        """int64 (B, T')."""
        first = self.protected
        if positions is None:
            positions = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
        stay = (kept @ positions[:, first::2].to(x.dtype).unsqueeze(-1)).squeeze(-1).to(torch.int64)
        return torch.cat([positions[:, :first], stay, positions[:, first + 1 :: 2]], dim=1)

    def _pairs(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """The partner in B of each token of A, int64 (B, A), and whether it merges into it, bool (B, A)."""
        scores = self.likeness(keys)
        best, partner = scores.amax(-1), scores.argmax(-1)
        one, other = best.unsqueeze(-1), best.unsqueeze(1)
        index = torch.arange(best.shape[1], device=keys.device)
        closer = (other > one) | ((other == one) & (index < index.unsqueeze(-1)))
        return partner, closer.to(keys.dtype).sum(-1) < self.merged

    def likeness(self, keys: Tensor) -> Tensor:
        """The cosine of each token of A with each of B, (B, A, C)."""
        keys = F.normalize(keys[:, self.protected :], dim=-1)
        return keys[:, ::2] @ keys[:, 1::2].transpose(1, 2)

    @torch.no_grad()
    def margin(self, keys: Tensor) -> Tensor:
        """By how much each image's closest decision was made, (B,): rounding that moves cosines by half of that changes
        nothing."""
        scores = self.likeness(keys)
        best = scores.topk(min(2, scores.shape[2])).values
        _, merged = self._pairs(keys)
        chosen = (best[..., 0] - best[..., -1]) if scores.shape[2] > 1 else torch.full_like(best[..., 0], torch.inf)
        margins = chosen.masked_fill(~merged, torch.inf).amin(-1)
        if self.merged < merged.shape[1]:
            last = best[..., 0].masked_fill(~merged, torch.inf).amin(-1)
            next_best = best[..., 0].masked_fill(merged, -torch.inf).amax(-1)
            margins = torch.minimum(margins, last - next_best)
        return margins

    @torch.no_grad()
    def follow(self, keys: Tensor, groups: Tensor | None = None) -> Tensor:
        """The groups alone, whether or not it tracks: see `forward`."""
        partner, merged = self._pairs(keys)
        place = torch.logical_not(merged).to(keys.dtype).cumsum(-1) - 1
        return self._groups(keys, merged, partner, place, groups)

    def _groups(self, x: Tensor, merged: Tensor, partner: Tensor, place: Tensor, groups: Tensor | None) -> Tensor:
        """Which token now stands for each of those that came here, or, where groups are given, that the model had."""
        first, a, count = self.protected, partner.shape[1], x.shape[1]
        others = first + a - self.merged  # where B begins
        moved = torch.where(merged, partner + others, place.to(torch.int64) + first)
        fixed = torch.cat([torch.arange(first), torch.arange(others, others + count - first - a)])
        # As they came: the protected, then A and B in turns.
        turns = (first + i // 2 if i % 2 else count - a + i // 2 for i in range(count - first))
        order = [*range(first), *turns]
        here = torch.cat([fixed.to(x.device).expand(x.shape[0], -1), moved], dim=1)
        here = here.index_select(1, torch.tensor(order, device=x.device))
        return here if groups is None else here.gather(1, groups)

    def config(self) -> dict[str, Any]:
        return {"protected": self.protected, "merged": self.merged, "tracks": self.tracks, "turns": self.turns}

    def extra_repr(self) -> str:
        tokens = "1 token merges" if self.merged == 1 else f"{self.merged} tokens merge"
        return tokens + (f", {self.protected} protected" if self.protected else "")


class RestoreTokens(nn.Module):
    """Every token that the model began with, as what it has become: (B, T', D), groups (B, T) -> (B, T, D)."""

    def forward(self, x: Tensor, groups: Tensor) -> Tensor:
        return _one_hot(groups, x.shape[1]).to(x.dtype).transpose(1, 2) @ x

    def config(self) -> dict[str, Any]:
        return {}


def _one_hot(place: Tensor, places: int, chosen: Tensor | None = None) -> Tensor:
    """bool (B, places, n): 1 where one of the `chosen` of n, or any, has that place. place: (B, n)."""
    matrix = place.unsqueeze(1) == torch.arange(places, device=place.device).unsqueeze(-1)
    return matrix if chosen is None else matrix & chosen.unsqueeze(1)

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

_TINY = 1e-12
"""The least length of a key that it is divided by, as `torch.nn.functional.normalize` has it."""


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
        place, stays = self._places(keys)
        moves = _one_hot(place, x.shape[1] - self.merged).to(x.dtype)
        weights = moves if sizes is None else moves * sizes.unsqueeze(1)
        grown = weights.sum(-1, keepdim=True)
        result = [(weights / grown) @ x, grown.squeeze(-1)]
        if self.tracks:
            result.append(place if groups is None else place.gather(1, groups))
        if self.turns:
            if positions is None:
                positions = torch.arange(x.shape[1], device=x.device).expand(x.shape[0], -1)
            own = moves * stays.to(x.dtype).unsqueeze(1)
            result.append((own @ positions.to(x.dtype).unsqueeze(-1)).squeeze(-1).to(torch.int64))
        return tuple(result)

    def _places(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Which token stands for each that comes here, int64 (B, T), and 1 for each that stays, 0 for others."""
        partner, merged = self._pairs(keys)
        first, a, count = self.protected, partner.shape[1], keys.shape[1]
        others = first + a - self.merged  # where B begins
        stays = torch.where(merged, 0, 1)
        place = torch.where(merged, partner + others, stays.cumsum(-1) + (first - 1))
        fixed = [*range(first), *(others + index // 2 if index % 2 else 0 for index in range(count - first))]
        spread = self._spread(place, count) + torch.tensor(fixed, device=keys.device)
        return spread, self._spread(stays, count, rest=1)

    def _spread(self, values: Tensor, count: int, rest: int = 0) -> Tensor:
        """What A has, (B, A), among all tokens as they came, (B, T), of which the others have `rest`."""
        turns = F.pad(values.unsqueeze(-1), (0, 1), value=rest).flatten(1)
        return F.pad(turns[:, : count - self.protected], (self.protected, 0), value=rest)

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
        keys = keys / keys.norm(dim=-1, keepdim=True).clamp_min(_TINY)
        return keys[:, self.protected :: 2] @ keys[:, self.protected + 1 :: 2].transpose(1, 2)

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
        place, _ = self._places(keys)
        return place if groups is None else place.gather(1, groups)

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


def average_groups(x: Tensor, groups: Tensor, count: int) -> Tensor:
    """What merged tokens stand for: (B, T, D), groups (B, T) -> the average of each group, (B, count, D)."""
    members = _one_hot(groups, count).to(x.dtype)
    return members @ x / members.sum(-1, keepdim=True)


def _one_hot(place: Tensor, places: int) -> Tensor:
    """bool (B, places, n): where each of n has its place. place: (B, n)."""
    return place.unsqueeze(1) == torch.arange(places, device=place.device).unsqueeze(-1)

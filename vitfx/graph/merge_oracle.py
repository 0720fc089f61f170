"""What an ablated model computes where tokens merge: image by image and token by token, from the plan alone.

The proof's other half: it shares neither `passes.merging` nor torch's fused attention with the artifact. Tokens are
compared by the keys of the heads that survive, so deletions come before merges.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.fx import GraphModule

from passes.dialect import Attention
from passes.merging import MergeTokens, RestoreTokens
from passes.rotary import Rotary
from passes.stream import module_of, read_sites

CLEAR = 3e-5
"""By how much a cosine must be greater than the next for rounding in float32 to leave the choice as it is."""


@dataclass(frozen=True)
class Merges:
    """Where tokens of a graph merge, read from its artifact."""

    behind: Mapping[str, int]  #: tokens that merge behind each attention, by its name
    protected: int  #: of the first tokens, which never merge
    restored: bool  #: whether the tokens that the model began with are restored behind the last sublayer

    @staticmethod
    def of(artifact: GraphModule) -> Merges:
        behind, protected = {}, 0
        for site in read_sites(artifact):
            merge = None if site.merge is None else module_of(artifact, site.merge)
            if isinstance(merge, MergeTokens):
                behind[site.name], protected = merge.merged, merge.protected
        return Merges(behind, protected, any(isinstance(part, RestoreTokens) for part in artifact.modules()))


@dataclass
class Merged:
    """A stream whose tokens are averages of groups."""

    #: for each image and token, which of the first tokens it stands for; the first of them gave it its position
    groups: list[list[list[int]]]

    @staticmethod
    def of(stream: Tensor) -> Merged:
        return Merged([[[token] for token in range(stream.shape[1])] for _ in range(len(stream))])

    def log_sizes(self, like: Tensor) -> Tensor:
        """(N, 1, 1, T), to be added to scores."""
        sizes = [[len(group) for group in image] for image in self.groups]
        return torch.tensor(sizes, dtype=like.dtype, device=like.device).log()[:, None, None]

    def turned(self, x: Tensor, rotary: Rotary | None) -> Tensor:
        """(N, H, T, d), each image's by its own positions."""
        if rotary is None:
            return x
        images = []
        for image, groups in zip(x, self.groups, strict=True):
            positions = [group[0] for group in groups]
            halves = image.split(image.shape[-1] // 2, dim=-1)
            swapped = torch.cat(halves[::-1], dim=-1)
            images.append(image * rotary.cos[:, positions] + swapped * rotary.sin[:, positions])
        return torch.stack(images)

    def merge(self, stream: Tensor, keys: Tensor, merged: int, protected: int) -> Tensor:
        """(N, T, D), by keys (N, T, d) -> (N, T − merged, D)."""
        images = []
        for number, groups in enumerate(self.groups):
            unit = keys[number] / keys[number].norm(dim=-1, keepdim=True).clamp_min(1e-12)
            ours, theirs = list(range(protected, len(groups), 2)), list(range(protected + 1, len(groups), 2))
            cosines = (unit[ours] @ unit[theirs].T).tolist()
            pairs = sorted(
                (-max(row), token, theirs[row.index(max(row))]) for token, row in zip(ours, cosines, strict=True)
            )
            goes = {token: to for _, token, to in pairs[:merged]}
            stay = [*range(protected), *(token for token in ours if token not in goes), *theirs]
            members = [[token, *(other for other, to in goes.items() if to == token)] for token in stay]
            weighed = [[len(groups[token]) * stream[number, token] for token in group] for group in members]
            sizes = [sum(len(groups[token]) for token in group) for group in members]
            images.append(
                torch.stack([sum(parts[1:], parts[0]) / size for parts, size in zip(weighed, sizes, strict=True)])
            )
            self.groups[number] = [[old for token in group for old in groups[token]] for group in members]
        return torch.stack(images)

    def restore(self, stream: Tensor) -> Tensor:
        """(N, T', D) -> (N, T, D)."""
        images = []
        for image, groups in zip(stream, self.groups, strict=True):
            place = {old: token for token, group in enumerate(groups) for old in group}
            images.append(image[[place[old] for old in range(len(place))]])
        return torch.stack(images)


def attended(module: Attention, x: Tensor, merged: Merged) -> Tensor:
    """Inner channels of all heads (N, T, E), before any norm of them, of a normalised stream of merged tokens."""
    core = module.core
    q = module.q(x).unflatten(-1, (module.units * core.group, -1)).transpose(1, 2)
    k, v = (linear(x).unflatten(-1, (module.units, -1)).transpose(1, 2) for linear in (module.k, module.v))
    q = merged.turned(q if core.q_norm is None else core.q_norm(q), core.q_rotary)
    k = merged.turned(k if core.k_norm is None else core.k_norm(k), core.k_rotary)
    k, v = (part.repeat_interleave(core.group, dim=1) for part in (k, v))
    scores = core.scale * q @ k.transpose(2, 3) + merged.log_sizes(x)
    heads: Tensor = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
    return heads


def keys_of(module: Attention, heads: Sequence[int], x: Tensor, merged: Merged | None) -> Tensor:
    """By which tokens merge: the mean of these heads' keys (N, T, d), after norm and rotation."""
    k = module.k(x).unflatten(-1, (module.units, -1)).transpose(1, 2)
    core = module.core
    k = k if core.k_norm is None else core.k_norm(k)
    merged = merged or Merged.of(x)
    k = merged.turned(k, core.k_rotary)
    keys: Tensor = k[:, list(heads)].mean(1)
    return keys


@torch.no_grad()
def clearly_merged(module: torch.nn.Module, pixels: Tensor) -> Tensor:
    """The images whose tokens merge by a margin that rounding can't cross; where none does, and where no tokens merge,
    all."""
    margins: list[Tensor] = []

    def look(merge: MergeTokens, args: tuple[Tensor, ...], _: object) -> None:
        margins.append(merge.margin(args[1]))

    merges = [part for part in module.modules() if isinstance(part, MergeTokens)]
    if not merges:
        return pixels
    hooks = [merge.register_forward_hook(look) for merge in merges]
    module(pixels)
    for hook in hooks:
        hook.remove()
    clear = torch.stack(margins).amin(0) > CLEAR
    return pixels[clear] if bool(clear.any()) else pixels

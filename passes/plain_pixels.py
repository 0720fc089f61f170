"""The preprocessing's mean and standard deviation go into the patch embedding: the model takes pixels of 0 to 1."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.fx import GraphModule

from passes.base import Pass, PassError, PassResult
from passes.deployment import PatchTokens


class PlainPixels(Pass):
    """W ((x − mean) / std) = (W / std) x − W (mean / std). Runs behind FoldPatches: only unpadded patches are exact.

    Afterwards the graph takes another input, so that the pass must not run twice.

    mean, std: of each channel.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.mean, self.std = tuple(mean), tuple(std)

    @torch.no_grad()
    def rewrite(self, graph_module: GraphModule) -> PassResult:
        """Raises PassError where there is no PatchTokens, or one of another number of channels."""
        embeds = [module for module in graph_module.children() if isinstance(module, PatchTokens)]
        if not embeds:
            raise PassError("the embedding is not one linear map of each patch, and only there is the fold exact")
        (embed,) = embeds
        if embed.weight.shape[1] != len(self.mean):
            raise PassError(f"mean has {len(self.mean)} channels and the images have {embed.weight.shape[1]}")
        mean, std = (_column(value, embed.weight) for value in (self.mean, self.std))
        scaled = embed.weight.double() / std
        shift = (scaled * mean).sum(dim=(1, 2, 3))
        embed.weight.copy_(scaled)
        embed.table[embed.prefix :] = embed.table[embed.prefix :].double() - shift
        return PassResult(graph_module, True, ("the pixels are 0 to 1, without mean and standard deviation",))


def _column(values: Sequence[float], like: Tensor) -> Tensor:
    return torch.tensor(values, dtype=torch.float64, device=like.device).view(1, -1, 1, 1)

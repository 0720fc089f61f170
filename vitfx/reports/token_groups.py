"""Which patches of an image end up in one token, where tokens merge."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.fx import GraphModule

from passes.merging import MergeTokens

Groups = tuple[tuple[int, ...], ...]
"""The number of each patch's token, by rows."""


@torch.no_grad()
def token_groups(graph_module: GraphModule, pixels: Tensor) -> Tensor:
    """int64 (N, T): behind the last merge, the token that stands for each of those that the model begins with.

    graph_module: one in which tokens merge. pixels: (N, C, H, W).
    """
    groups: Tensor | None = None

    def follow(merge: MergeTokens, args: tuple[Tensor, ...], _: object) -> None:
        nonlocal groups
        groups = merge.follow(args[1], groups)

    hooks = [part.register_forward_hook(follow) for part in graph_module.modules() if isinstance(part, MergeTokens)]
    try:
        graph_module(pixels)
    finally:
        for hook in hooks:
            hook.remove()
    assert groups is not None
    return groups


def patch_groups(groups: Tensor, shape: tuple[int, int]) -> Groups:
    """Of one image's tokens (T,), those of the patches, which are the last. shape: rows and columns."""
    rows: list[list[int]] = groups[-shape[0] * shape[1] :].reshape(shape).tolist()
    return tuple(map(tuple, rows))

"""Where the class token looks, before and after pruning, on a few images."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torch.fx import GraphModule

from passes.dialect import Attention
from passes.merge_tokens import schedule_of
from passes.merging import MergeTokens
from passes.plan import DeletionPlan, SublayerDeletion
from passes.pooled_attention import PooledAttention
from passes.stream import read_sites
from passes.token_use import tokens_read
from vitfx.graph.stages import read_stages, run_stages, streams_at
from vitfx.images.image_set import Images, ImageSet
from vitfx.images.preprocess import Preprocess
from vitfx.reports.token_groups import Groups, patch_groups, token_groups
from vitfx.support.errors import UserError

_SHOWN = 3
_DRAWN = 12
"""Images that are sampled, so that corrupt ones among them do not matter."""

Heat = tuple[tuple[float, ...], ...]
"""The class token's attention to each patch, by rows."""


@dataclass(frozen=True)
class AttentionMap:
    name: str  #: the image's
    picture: bytes  #: PNG, as the model sees it
    before: Heat  #: pruning
    after: Heat


@dataclass(frozen=True)
class GroupMap:
    name: str  #: the image's
    picture: bytes  #: PNG, as the model sees it
    groups: Groups


@dataclass(frozen=True)
class AttentionMaps:
    """Maps of the last attention sublayer that survives, averaged on both sides over its surviving heads."""

    maps: tuple[AttentionMap, ...] = ()
    sublayer: str = ""
    heads: tuple[int, ...] = ()  #: that survive, by their numbers before pruning
    total: int = 0  #: heads before pruning
    reason: str = ""  #: why there are no maps
    groups: tuple[GroupMap, ...] = ()  #: where tokens merge, in place of maps


def attention_maps(
    original: GraphModule, pruned: GraphModule, plan: DeletionPlan | None, evaluation: ImageSet, seed: int,
    preprocess: Preprocess, classes: Sequence[str] | None,
) -> AttentionMaps:  # fmt: skip
    """On the first images of a sample of those for evaluation.

    original, pruned: canonical, on the CPU.
    plan: what was deleted, None where that is not known.
    classes: their names, where they are known.
    """
    if schedule_of(pruned):
        return _merged(pruned, evaluation, seed, preprocess, classes)
    left = [site for site in read_sites(pruned) if isinstance(site.module, Attention)]
    if not left:
        return AttentionMaps(reason="No attention survives, so there are no attention maps.")
    if any(isinstance(site.module, PooledAttention) for site in read_sites(original)):
        return AttentionMaps(
            reason="The logits read a pool of the stream and not a class token: no token's attention shows where the "
            "model looks."
        )
    name = left[-1].name
    heads, total = _heads(left[-1].module.units, None if plan is None else plan.of_kind("head").get(name))
    if total != {site.name: site.module.units for site in read_sites(original)}.get(name):
        return AttentionMaps(
            reason=f"Which heads of {name} were deleted is not known: attention before and after can't be compared."
        )
    try:
        images = evaluation.sample(min(_DRAWN, len(evaluation)), seed).load()
    except UserError:
        return AttentionMaps(reason="The images drawn for attention maps are all corrupt.")
    pixels = images.pixels[:_SHOWN]
    before, end = _looks(original, name, pixels)
    after, _ = _looks(pruned, name, pixels)
    tokens = before.shape[2]
    shape = patch_grid(tokens, *pixels.shape[2:])
    read = tokens_read(lambda stream: _tail(original, stream), end)
    if shape is None or not read or read[-1] >= tokens - shape[0] * shape[1]:
        return AttentionMaps(
            reason=f"The logits read {len(read)} of {end.shape[1]} tokens and not a class token alone: attention maps "
            "of one token would not say where the model looks."
        )
    sides = (before[:, list(heads)], after)
    grids = [side.mean(1)[:, -shape[0] * shape[1] :].reshape(-1, *shape).tolist() for side in sides]
    maps = tuple(
        AttentionMap(_title(images, index, classes), _png(pixels[index], preprocess), _heat(old), _heat(new))
        for index, (old, new) in enumerate(zip(*grids, strict=True))
    )
    return AttentionMaps(maps, name, heads, total)


def _merged(
    pruned: GraphModule, evaluation: ImageSet, seed: int, preprocess: Preprocess, classes: Sequence[str] | None
) -> AttentionMaps:
    reason = "Tokens merge, so attention before and after does not fall on the same tokens."
    try:
        images = evaluation.sample(min(_DRAWN, len(evaluation)), seed).load()
    except UserError:
        return AttentionMaps(reason=reason)
    pixels = images.pixels[:_SHOWN]
    protected = next(part.protected for part in pruned.modules() if isinstance(part, MergeTokens))
    groups = token_groups(pruned, pixels)
    shape = patch_grid(groups.shape[1] - protected + 1, *pixels.shape[2:])
    if shape is None or shape[0] * shape[1] != groups.shape[1] - protected:
        return AttentionMaps(reason=reason)
    maps = tuple(
        GroupMap(_title(images, index, classes), _png(pixels[index], preprocess), patch_groups(of, shape))
        for index, of in enumerate(groups)
    )
    return AttentionMaps(reason=reason, groups=maps)


def _heads(units: int, deletion: SublayerDeletion | None) -> tuple[tuple[int, ...], int]:
    """Those that survive, by their numbers before the deletion, and how many there were."""
    return (tuple(range(units)), units) if deletion is None else (deletion.kept, deletion.total)


@torch.no_grad()
def _looks(graph_module: GraphModule, name: str, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The attention of the first token in the sublayer of this name, (N, H, T), and the stream behind the last one."""
    weights = None
    for reading in streams_at(read_stages(graph_module)[: _last(graph_module) + 1], pixels):
        stage = reading.stage
        if stage.name == name:
            assert isinstance(stage.module, Attention) and stage.norm is not None
            weights = _weights(stage.module, stage.norm(stage.read(reading.stream)))
    assert weights is not None
    return weights, reading.behind


def _weights(module: Attention, x: Tensor) -> Tensor:
    """softmax(scale · q₀ Kᵀ) of each head: (N, T, D) -> (N, H, T)."""
    q, k = (
        project(part).unflatten(-1, (module.units, -1)).transpose(1, 2)
        for project, part in ((module.q, x[:, :1]), (module.k, x))
    )
    return module.core.of_queries(torch.arange(1)).pattern(q, k)[:, :, 0]


def _last(graph_module: GraphModule) -> int:
    return max(index for index, stage in enumerate(read_stages(graph_module)) if stage.sublayer is not None)


def _tail(graph_module: GraphModule, stream: Tensor) -> Tensor:
    """What follows the last sublayer."""
    return run_stages(read_stages(graph_module)[_last(graph_module) + 1 :], stream)


def patch_grid(tokens: int, height: int, width: int) -> tuple[int, int] | None:
    """Rows and columns of the patches, with as few other tokens as possible, but one at least; None if no grid of the
    image's proportions fits."""
    for count in range(tokens - 1, 0, -1):
        rows = round((count * height / width) ** 0.5)
        if rows and count % rows == 0 and rows * width == count // rows * height:
            return rows, count // rows
    return None


def _title(images: Images, index: int, classes: Sequence[str] | None) -> str:
    if images.labels is None or images.labels.dim() > 1:
        return images.names[index]
    label = int(images.labels[index])
    return f"{images.names[index]}, class {classes[label] if classes else label}"


def _heat(rows: Sequence[Sequence[float]]) -> Heat:
    return tuple(tuple(row) for row in rows)


def _png(pixels: Tensor, preprocess: Preprocess) -> bytes:
    """With the normalisation undone."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (preprocess.mean, preprocess.std))
    shown = ((pixels * std + mean).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    # One channel, or three; of any other number the first.
    image = Image.fromarray(shown if shown.shape[2] == 3 else shown[:, :, 0])
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()

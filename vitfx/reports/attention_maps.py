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
from passes.plan import DeletionPlan, SublayerDeletion
from passes.stream import read_sites
from passes.token_use import tokens_read
from vitfx.graph.stages import read_stages
from vitfx.images.image_set import Images, ImageSet
from vitfx.images.preprocess import Preprocess
from vitfx.support.errors import UserError

_SHOWN = 3
_ASKED = 12
"""Images, so that corrupt ones among them do not matter."""

Grid = tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class AttentionMap:
    """name: the image's. picture: PNG, as the model sees it. before, after: the class token's attention to each patch,
    by rows."""

    name: str
    picture: bytes
    before: Grid
    after: Grid


@dataclass(frozen=True)
class AttentionMaps:
    """Of the last attention sublayer that survives; heads: those of it that do, of `total`, over which both sides are
    averaged. reason: why there are no maps."""

    maps: tuple[AttentionMap, ...] = ()
    sublayer: str = ""
    heads: tuple[int, ...] = ()
    total: int = 0
    reason: str = ""


def attention_maps(
    original: GraphModule, pruned: GraphModule, plan: DeletionPlan | None, evaluation: ImageSet, seed: int,
    preprocess: Preprocess, classes: Sequence[str] | None,
) -> AttentionMaps:  # fmt: skip
    """On the first images of a sample of those for evaluation. original, pruned: canonical, on the CPU. plan: what was
    deleted, None where that is not known."""
    left = [site for site in read_sites(pruned) if isinstance(site.module, Attention)]
    if not left:
        return AttentionMaps(reason="No attention survives, so that there are no attention maps.")
    name = left[-1].name
    heads, total = _heads(left[-1].module.units, None if plan is None else plan.of_kind("head").get(name))
    if total != {site.name: site.module.units for site in read_sites(original)}.get(name):
        return AttentionMaps(
            reason=f"Which heads of {name} were deleted is not known: attention before and after can't be compared."
        )
    try:
        images = evaluation.sample(min(_ASKED, len(evaluation)), seed).load()
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
    grids = [side.mean(1)[:, -shape[0] * shape[1] :].unflatten(1, shape).tolist() for side in sides]
    made = tuple(
        AttentionMap(_title(images, place, classes), _png(pixels[place], preprocess), _grid(one), _grid(other))
        for place, (one, other) in enumerate(zip(*grids, strict=True))
    )
    return AttentionMaps(made, name, heads, total)


def _heads(units: int, deletion: SublayerDeletion | None) -> tuple[tuple[int, ...], int]:
    """Those that are left, by their numbers before the deletion, and of how many."""
    return (tuple(range(units)), units) if deletion is None else (deletion.kept, deletion.total)


@torch.no_grad()
def _looks(graph_module: GraphModule, name: str, pixels: Tensor) -> tuple[Tensor, Tensor]:
    """The attention of the first token in the sublayer of this name, (N, H, T), and the stream behind the last one."""
    stream, found = pixels, None
    for stage in read_stages(graph_module)[: _last(graph_module) + 1]:
        if stage.name == name:
            assert isinstance(stage.module, Attention) and stage.norm is not None
            found = _weights(stage.module, stage.norm(stream))
        stream = stage(stream)
    assert found is not None
    return found, stream


def _weights(module: Attention, x: Tensor) -> Tensor:
    """softmax(scale · q₀ Kᵀ) of each head: (N, T, D) -> (N, H, T)."""
    q, k = (
        project(part).unflatten(-1, (module.units, -1)).transpose(1, 2)
        for project, part in ((module.q, x[:, :1]), (module.k, x))
    )
    return module.core.of_queries(torch.arange(1)).pattern(q, k)[:, :, 0]


def _last(graph_module: GraphModule) -> int:
    return max(place for place, stage in enumerate(read_stages(graph_module)) if stage.sublayer is not None)


def _tail(graph_module: GraphModule, stream: Tensor) -> Tensor:
    """What follows the last sublayer."""
    for stage in read_stages(graph_module)[_last(graph_module) + 1 :]:
        stream = stage(stream)
    return stream


def patch_grid(tokens: int, height: int, width: int) -> tuple[int, int] | None:
    """Rows and columns of the patches, with as few tokens beside them as can be, one at least; None if no grid of the
    image's proportions fits."""
    for count in range(tokens - 1, 0, -1):
        rows = round((count * height / width) ** 0.5)
        if rows and count % rows == 0 and rows * width == count // rows * height:
            return rows, count // rows
    return None


def _title(images: Images, place: int, classes: Sequence[str] | None) -> str:
    if images.labels is None:
        return images.names[place]
    label = int(images.labels[place])
    return f"{images.names[place]}, class {classes[label] if classes else label}"


def _grid(rows: Sequence[Sequence[float]]) -> Grid:
    return tuple(tuple(row) for row in rows)


def _png(pixels: Tensor, preprocess: Preprocess) -> bytes:
    """The normalisation taken back."""
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (preprocess.mean, preprocess.std))
    shown = ((pixels * std + mean).clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
    # One channel, or three; of any other number the first.
    image = Image.fromarray(shown if shown.shape[2] == 3 else shown[:, :, 0])
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()

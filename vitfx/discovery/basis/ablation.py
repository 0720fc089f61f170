"""What stands in for a removed writer: nothing, a mean over the corrupted images, or the corrupted run itself.

zero: the writer adds nothing. mean: its mean over corrupted images and tokens (the embedding's keeps its tokens apart:
positions are no property of an image). position-mean: its mean over corrupted images, token by token. resample: what
it computes on the image's own counterpart in the corrupted set (Conmy et al. 2023, "interchange"). An artifact holds
constants only, so what resampling removed is deleted with the mean.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vitfx.circuits.circuit import EMBED
from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.graph.stages import Reference
from vitfx.support.processes import Alone, Share

ABLATIONS = ("zero", "mean", "position-mean", "resample")
_BATCH = 32


def make_reference(graph: EdgeGraph, corrupted: Tensor, ablation: str, share: Share | None = None) -> Reference:
    """The reference of each writer, in float32 or the model's own type on the model's device.

    corrupted: (N, C, H, W), preprocessed; this process's, where the images are shared out.
    Shapes: zero and mean (E,), position-mean (T, E), resample (N, T, E), which
    takes N·T·ΣE numbers of memory.
    """
    if ablation == "resample":
        found: dict[str, list[Tensor]] = {}
        for batch in _batches(graph, corrupted):
            for name, inner in batch.items():
                found.setdefault(name, []).append(inner)
        return {name: torch.cat(parts) for name, parts in found.items()}
    share = share or Alone()
    sums = {name: share.sum(total) for name, total in _sums(graph, corrupted).items()}
    count = int(share.sum(torch.tensor(len(corrupted))))
    if ablation == "zero":
        return {name: torch.zeros_like(total[0]) for name, total in sums.items()}
    by_token = {name: total / count for name, total in sums.items()}
    if ablation == "position-mean":
        return by_token
    if ablation == "mean":
        return {name: mean if name == EMBED else mean.mean(dim=0) for name, mean in by_token.items()}
    raise ValueError(f"ablation {ablation!r} is not one of {', '.join(ABLATIONS)}")


def _sums(graph: EdgeGraph, corrupted: Tensor) -> dict[str, Tensor]:
    """Σ over images, float64 (T, E)."""
    sums: dict[str, Tensor] = {}
    for batch in _batches(graph, corrupted):
        for name, inner in batch.items():
            total = inner.double().sum(dim=0)
            sums[name] = sums[name] + total if name in sums else total
    return sums


@torch.no_grad()
def _batches(graph: EdgeGraph, corrupted: Tensor) -> Iterator[dict[str, Tensor]]:
    """For each batch the embedding and every sublayer's inner channels."""
    for pixels in corrupted.split(_BATCH):
        stream, found = pixels, {}
        for index, stage in enumerate(graph.stages):
            if index == graph.first:
                found[EMBED] = stream
            if stage.sublayer is None:
                stream = stage(stream)
                continue
            found[stage.name] = stage.inner(stream)
            stream = stream + stage.sublayer.out(found[stage.name])
        yield found

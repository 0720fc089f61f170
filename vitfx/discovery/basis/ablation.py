"""What stands in for a removed writer: nothing, a mean over the corrupted images, or the corrupted run itself.

zero: the writer adds nothing.
mean: its mean over corrupted images and tokens. The embedding's is taken token by token, because positions are not a
    property of the image.
position-mean: its mean over corrupted images, token by token.
resample: what it computes on the image's own counterpart in the corrupted set (Conmy et al. 2023, "interchange"). An
    artifact can only hold constants, so what a resampled circuit lacks is deleted with the mean.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from vitfx.circuits.circuit import EMBED
from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.discovery.basis.settings import ABLATIONS
from vitfx.graph.stages import Reference, streams_at
from vitfx.support.processes import Alone, Share

_BATCH = 32


def make_reference(graph: EdgeGraph, corrupted: Tensor, ablation: str, share: Share | None = None) -> Reference:
    """Each writer's reference, on the model's device: (E,) for zero and mean, (T, E) for position-mean, (N, T, E) for
    resample, which takes N·T·ΣE numbers of memory.

    corrupted: this process's images (N, C, H, W), preprocessed.
    """
    if ablation == "resample":
        batches = list(_batches(graph, corrupted))
        return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
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
    raise ValueError(f"ablation {ablation!r} is not known: choose one of {', '.join(ABLATIONS)}")


def _sums(graph: EdgeGraph, corrupted: Tensor) -> dict[str, Tensor]:
    """The sum over images, float64 (T, E)."""
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
        values = {}
        for index, reading in enumerate(streams_at(graph.stages, pixels)):
            if index == graph.first:
                values[EMBED] = reading.stream
            if reading.stage.sublayer is not None:
                values[reading.stage.name] = reading.inner
        yield values

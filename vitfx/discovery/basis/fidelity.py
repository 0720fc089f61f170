"""How faithful a circuit is, run exactly as it is: divergence, agreement and accuracy of the edge graph."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from vitfx.circuits.circuit import Edge
from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.graph.divergence import kl_divergence
from vitfx.graph.stages import Reference, of_images
from vitfx.support.processes import Alone, Share
from vitfx.support.progress import Report

_BATCH = 16


@dataclass(frozen=True)
class Fidelity:
    """kl: mean D_KL(G‖H) in nats. agreement: share of images with the whole model's top-1. accuracy: top-1, None
    without labels; whole_accuracy: the whole model's."""

    images: int
    kl: float
    agreement: float
    accuracy: float | None
    whole_accuracy: float | None

    def to_json(self) -> dict[str, float | int | None]:
        return asdict(self)


@torch.no_grad()
def fidelity(
    graph: EdgeGraph,
    removed: Collection[Edge],
    reference: Reference,
    pixels: Tensor,
    labels: Tensor | None = None,
    share: Share | None = None,
    progress: Report | None = None,
) -> Fidelity:
    """Runs the circuit and the whole model on images (N, C, H, W), of this process where they are shared out.

    reference: a resampling one has a value for each of these very images.
    """
    totals = torch.zeros(5, dtype=torch.float64)
    for start in range(0, len(pixels), _BATCH):
        images = slice(start, min(start + _BATCH, len(pixels)))
        whole = graph.run(pixels[images])
        cut = {name: of_images(value, images) for name, value in reference.items()}
        circuit = graph.run(pixels[images], removed, cut)
        top = [one.argmax(dim=-1) for one in (whole, circuit)]
        right = [0.0, 0.0] if labels is None else [float((one == labels[images]).sum()) for one in top]
        divergence = float(kl_divergence(whole, circuit).sum())
        totals += torch.tensor([len(whole), divergence, float((top[0] == top[1]).sum()), *right], dtype=torch.float64)
        if progress is not None:
            progress(images.stop, len(pixels))
    count, kl, agreeing, whole_right, right_ = (share or Alone()).sum(totals).tolist()
    known = labels is not None
    return Fidelity(
        images=int(count),
        kl=kl / count,
        agreement=agreeing / count,
        accuracy=right_ / count if known else None,
        whole_accuracy=whole_right / count if known else None,
    )

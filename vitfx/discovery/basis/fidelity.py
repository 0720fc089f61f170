"""How faithful a circuit is, run edge by edge: its divergence, agreement and accuracy."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from vitfx.circuits.circuit import Edge
from vitfx.circuits.details import Fidelity
from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.discovery.basis.protocol import batches
from vitfx.graph.divergence import CLASSES, Divergence
from vitfx.graph.metrics import alike, right
from vitfx.graph.stages import Reference, of_images
from vitfx.support.processes import Alone, Share
from vitfx.support.progress import Report


@torch.no_grad()
def fidelity(
    graph: EdgeGraph,
    removed: Collection[Edge],
    reference: Reference,
    pixels: Tensor,
    labels: Tensor | None = None,
    share: Share | None = None,
    progress: Report | None = None,
    divergence: Divergence = CLASSES,
) -> Fidelity:
    """Runs the circuit and the whole model on this process's images (N, C, H, W).

    reference: a resampling one has a value for each of these very images.
    """
    totals = torch.zeros(8, dtype=torch.float64)
    for images in batches(len(pixels)):
        whole = graph.run(pixels[images])
        own = {name: of_images(value, images) for name, value in reference.items()}
        circuit = graph.run(pixels[images], removed, own)
        shares = [alike(divergence, whole, circuit)]
        shares += [None if labels is None else right(divergence, each, labels[images]) for each in (whole, circuit)]
        parts = [torch.zeros(2) if each is None else each.sum(dim=0).cpu() for each in shares]
        total = float(divergence(whole, circuit).sum())
        totals += torch.cat([torch.tensor([len(whole), total], dtype=torch.float64), *parts])
        if progress is not None:
            progress(images.stop, len(pixels))
    sums = (share or Alone()).sum(totals).tolist()
    count, kl = sums[:2]
    agreement, whole_right, circuit_right = (
        part / of if of else None for part, of in zip(sums[2::2], sums[3::2], strict=True)
    )
    return Fidelity(
        images=int(count), kl=kl / count, agreement=agreement, accuracy=circuit_right, whole_accuracy=whole_right
    )

"""How faithful a circuit is, run edge by edge: its divergence, agreement and accuracy."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor

from vitfx.circuits.circuit import Edge
from vitfx.circuits.details import Fidelity
from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.discovery.basis.protocol import batches
from vitfx.graph.divergence import kl_divergence
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
) -> Fidelity:
    """Runs the circuit and the whole model on this process's images (N, C, H, W).

    reference: a resampling one has a value for each of these very images.
    """
    totals = torch.zeros(5, dtype=torch.float64)
    for images in batches(len(pixels)):
        whole = graph.run(pixels[images])
        own = {name: of_images(value, images) for name, value in reference.items()}
        circuit = graph.run(pixels[images], removed, own)
        top = [logits.argmax(dim=-1) for logits in (whole, circuit)]
        right = [0.0, 0.0] if labels is None else [float((classes == labels[images]).sum()) for classes in top]
        divergence = float(kl_divergence(whole, circuit).sum())
        totals += torch.tensor([len(whole), divergence, float((top[0] == top[1]).sum()), *right], dtype=torch.float64)
        if progress is not None:
            progress(images.stop, len(pixels))
    count, kl, agreeing, whole_right, circuit_right = (share or Alone()).sum(totals).tolist()
    return Fidelity(
        images=int(count),
        kl=kl / count,
        agreement=agreeing / count,
        accuracy=None if labels is None else circuit_right / count,
        whole_accuracy=None if labels is None else whole_right / count,
    )

"""The loop that discovery is measured against: for every edge, a run of the whole edge graph over all images.

It is as fast as it can be without becoming another algorithm: no gradients, the whole model's logits computed once, and
batches of a size that suits a whole forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import TypeVar

import torch
from torch.fx import GraphModule

from benchmarks.measure import timed
from vitfx.circuits.circuit import Edge
from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.discovery.basis.calibration import Calibration
from vitfx.graph.divergence import kl_divergence
from vitfx.graph.stages import Reference, of_images

BATCH = 32
T = TypeVar("T")


class Naive:
    """Algorithm 1's question (Conmy et al. 2023), asked of the whole graph."""

    def __init__(
        self, graph_module: GraphModule, graph: EdgeGraph, calibration: Calibration, reference: Reference
    ) -> None:
        self.graph_module, self.graph, self.calibration, self.reference = graph_module, graph, calibration, reference
        with torch.no_grad():
            self.clean = [graph.run(calibration.clean[images]) for images in self._batches()]

    def _batches(self) -> Iterator[slice]:
        for start in range(0, len(self.calibration.clean), BATCH):
            yield slice(start, min(start + BATCH, len(self.calibration.clean)))

    @torch.no_grad()
    def kl(self, removed: Collection[Edge]) -> float:
        """D_KL(G‖H) in nats an image, H without these edges."""
        total = torch.zeros((), dtype=torch.float64)
        for images, clean in zip(self._batches(), self.clean, strict=True):
            reference = {name: of_images(value, images) for name, value in self.reference.items()}
            logits = self.graph.run(self.calibration.clean[images], removed, reference)
            total += kl_divergence(clean, logits).sum().cpu()
        return float(total) / len(self.calibration.clean)

    @torch.no_grad()
    def plain(self) -> None:
        """One forward pass of the model over the same images: the unit of `forward_pass_equivalents`."""
        for images in self._batches():
            self.graph_module(self.calibration.clean[images])

    def timed(self, call: Callable[[], T]) -> tuple[float, T]:
        """Wall-clock seconds, and what the call returns."""
        return timed(call, self.calibration.clean.device)

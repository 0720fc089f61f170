"""From the scores of a batch of images to those of the edges: batches that fit in memory, means over all processes.

Memory of a batch of n images: W·n·T·D numbers for what W writers add to T tokens of width D, at most 2²⁶ of them but
for a single image, and one sublayer's readers beside it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.discovery.basis.calibration import Calibration
from vitfx.discovery.methods.edge_gradients import embedding_of
from vitfx.support.progress import Report

_NUMBERS = 2**26
_BATCH = 16


def mean_of_edges(
    graph: EdgeGraph, calibration: Calibration, of_batch: Callable[[slice], Tensor], progress: Report | None
) -> Tensor:
    """The mean over the images of all processes, float64 (edges,) on the CPU.

    of_batch: some of this process's images -> (n, edges). progress: called with how many of this process's images are
    done, and how many there are.
    """
    count = len(calibration.clean)
    total = torch.zeros(len(graph.edges()), dtype=torch.float64, device=calibration.clean.device)
    size = _batch_size(graph, calibration.clean)
    for start in range(0, count, size):
        images = slice(start, min(start + size, count))
        total += of_batch(images).sum(dim=0)
        if progress is not None:
            progress(images.stop, count)
    return calibration.mean(total).cpu()


def _batch_size(graph: EdgeGraph, pixels: Tensor) -> int:
    if not len(pixels):
        return 1
    return max(1, min(_BATCH, _NUMBERS // (len(graph.writers) * embedding_of(graph, pixels[:1]).numel())))


def by_name(graph: EdgeGraph, scores: Tensor) -> dict[str, float]:
    """Scores (edges,) in the order of `graph.edges()`, by the edges' names."""
    return dict(zip((edge.name for edge in graph.edges()), scores.tolist(), strict=True))

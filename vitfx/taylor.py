"""The first-order Taylor score of pruning, a baseline: how much the loss changes as an edge's activation goes to zero
(Molchanov et al. 2017, arXiv:1611.06440, equation 8; for heads, Michel et al. 2019, arXiv:1905.10650, equation 2)."""

from __future__ import annotations

from torch import Tensor

from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.discovery.basis.calibration import Calibration
from vitfx.discovery.basis.metric import make_metric
from vitfx.discovery.methods.edge_gradients import TrackedRun, embedding_of
from vitfx.edge_means import by_name, mean_of_edges
from vitfx.support.progress import Report


def taylor(graph: EdgeGraph, calibration: Calibration, *, progress: Report | None = None) -> dict[str, float]:
    """Mean over images of |clean_w · ∂loss/∂x_r| for each edge w → r, by its name, in nats an image.

    The absolute value is each image's. It knows no reference: the gate goes towards zero.
    """

    def of_batch(images: slice) -> Tensor:
        run = TrackedRun(graph, embedding_of(graph, calibration.clean[images]))
        loss = make_metric("loss", graph, calibration, images, run.logits)
        return run.derivatives(loss, run.deltas(None, images)).abs()

    return by_name(graph, mean_of_edges(graph, calibration, of_batch, progress))

"""The Fisher information of every edge: what removing it adds to the KL divergence, to second order.

An edge's gate is 1 where the edge is whole and 0 where the reader sees the writer's reference. D_KL(clean ‖ ·) has no
gradient at the clean run; its quadratic form there is ½·E[(∂ log p(y|x)/∂gate)²] with y drawn from the model (Amari
1998; for pruning, Theis et al. 2018, arXiv:1801.05787, equation 6)."""

from __future__ import annotations

from torch import Tensor

from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.discovery.basis.calibration import Calibration
from vitfx.discovery.basis.metric import drawn_from, log_probability
from vitfx.discovery.methods.edge_gradients import TrackedRun, embedding_of
from vitfx.edge_means import by_name, mean_of_edges
from vitfx.graph.stages import Reference
from vitfx.support.progress import Report


def fisher(
    graph: EdgeGraph, calibration: Calibration, reference: Reference, *, progress: Report | None = None
) -> dict[str, float]:
    """½ · mean over images of (∂ log p(y|x)/∂gate)² for each edge, by its name, in nats an image.

    One y is drawn for each image, with `calibration.draws`. One forward and one backward pass.
    """

    def of_batch(images: slice) -> Tensor:
        run = TrackedRun(graph, embedding_of(graph, calibration.clean[images]))
        drawn = drawn_from(run.logits, calibration.draws[images])
        return run.derivatives(log_probability(drawn), run.deltas(reference, images)).square() / 2

    return by_name(graph, mean_of_edges(graph, calibration, of_batch, progress))

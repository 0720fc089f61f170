"""EAP: edge attribution patching (Syed et al. 2024, "Attribution Patching Outperforms Automated Circuit Discovery",
arXiv:2310.10348): a first-order estimate of what removing an edge does to a metric, for all edges at once."""

from __future__ import annotations

from torch import Tensor

from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.discovery.basis.calibration import Calibration
from vitfx.discovery.basis.metric import check_metric, make_metric
from vitfx.discovery.methods.edge_gradients import TrackedRun, embedding_of
from vitfx.edge_means import by_name, mean_of_edges
from vitfx.fisher import fisher
from vitfx.graph.stages import Reference
from vitfx.support.progress import Report


def eap(
    graph: EdgeGraph, calibration: Calibration, reference: Reference, *, metric: str, progress: Report | None = None
) -> dict[str, float]:
    """|mean over images of (ref_w − clean_w) · ∂metric/∂x_r at the clean run| for each edge w → r, by its name.

    metric: one of METRICS, in whose unit the scores are. D_KL(clean ‖ ·) has no gradient at the clean run: `kl` takes
    its quadratic form, see `fisher`. Two forward passes for `logit-difference`, else one, and one backward.
    Raises UserError for an unknown metric.
    """
    check_metric(metric)
    if metric == "kl":
        return fisher(graph, calibration, reference, progress=progress)

    def of_batch(images: slice) -> Tensor:
        run = TrackedRun(graph, embedding_of(graph, calibration.clean[images]))
        value = make_metric(metric, graph, calibration, images, run.logits)
        return run.derivatives(value, run.deltas(reference, images))

    return by_name(graph, mean_of_edges(graph, calibration, of_batch, progress).abs())

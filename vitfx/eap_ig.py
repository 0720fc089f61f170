"""EAP-IG: edge attribution patching with integrated gradients (Hanna et al. 2024, "Have Faith in Faithfulness",
arXiv:2403.17806): gradients are taken along the way from the ablated embedding to the clean one."""

from __future__ import annotations

import torch
from torch import Tensor

from vitfx.circuits.circuit import EMBED
from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.discovery.basis.calibration import Calibration
from vitfx.discovery.basis.metric import check_metric, make_metric
from vitfx.discovery.methods.edge_gradients import TrackedRun, embedding_of
from vitfx.edge_means import by_name, mean_of_edges
from vitfx.graph.stages import Reference, of_images
from vitfx.support.errors import UserError
from vitfx.support.progress import Report


def eap_ig(
    graph: EdgeGraph,
    calibration: Calibration,
    reference: Reference,
    *,
    metric: str,
    steps: int = 5,
    progress: Report | None = None,
) -> dict[str, float]:
    """|mean over images of (ref_w − clean_w) · 1/m Σ_k ∂metric/∂x_r at z' + k/m (z − z')|, k = 1 … m, by edge name.

    z is the embedding of the image, z' its reference, m the steps; the last point is the clean run, whose gradient of
    `kl` is zero (Hanna et al. 2024, equation 3). ref_w − clean_w is the clean run's. metric: one of METRICS, in whose
    unit the scores are. m forward and backward passes. Raises UserError for an unknown metric, or less than one step.
    """
    check_metric(metric)
    if steps < 1:
        raise UserError(f"EAP-IG can't take {steps} steps: give 1 or more")

    def of_batch(images: slice) -> Tensor:
        clean = embedding_of(graph, calibration.clean[images])
        ablated = of_images(reference[EMBED], images).to(clean)
        run = TrackedRun(graph, clean)
        value = make_metric(metric, graph, calibration, images, run.logits)
        deltas = run.deltas(reference, images)
        total = run.derivatives(value, deltas)
        for step in range(1, steps):
            point = torch.lerp(ablated.expand_as(clean), clean, step / steps)
            total += TrackedRun(graph, point).derivatives(value, deltas)
        return total / steps

    return by_name(graph, mean_of_edges(graph, calibration, of_batch, progress).abs())

"""How much KL divergence each head and hidden neuron carries: an estimate that orders and groups, but never decides.

A unit's gate is 1 where it is whole and 0 where its ablation stands in for it. The gradient of KL(G‖·) is zero at the
whole model; its quadratic form there is the Fisher information, ½·E[(∂ log p(y|x)/∂gate)²] with y drawn from the model,
and one backward pass gives it for every gate at once (Amari 1998; for pruning, Theis et al. 2018, arXiv:1801.05787).
Other kinds of answers have their divergence's own form, see `vitfx.discovery.basis.metric.fisher_metric`.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from vitfx.circuits.edge_graph import EdgeGraph, Paths
from vitfx.discovery.basis.calibration import Calibration
from vitfx.discovery.basis.metric import fisher_metric
from vitfx.discovery.basis.protocol import BATCH, batches
from vitfx.graph.stages import Reference, Stage, of_images, streams_at, sublayers_of
from vitfx.support.progress import Report


def fisher_scores(
    stages: list[Stage],
    calibration: Calibration,
    reference: Reference,
    *,
    progress: Report | None = None,
) -> dict[str, Tensor]:
    """½·E[(∂ log p(y|x)/∂gate)²] of each unit, float64 (units,) for each sublayer, in nats an image.

    One y is drawn for each image, from `calibration.draws`.
    """
    totals = {name: torch.zeros(module.units, dtype=torch.float64) for name, module in sublayers_of(stages).items()}
    count = len(calibration.clean)
    for images in batches(count, BATCH):
        for name, gradients in _gate_gradients(stages, calibration, images, reference).items():
            totals[name] += gradients.double().square().sum(dim=0).cpu() / 2
        if progress is not None:
            progress(images.stop, count)
    return {name: calibration.mean(total) for name, total in totals.items()}


def _gate_gradients(
    stages: list[Stage], calibration: Calibration, images: slice, reference: Reference
) -> dict[str, Tensor]:
    """∂ log p(y|x)/∂gate, (N, units) for each sublayer."""
    inners: dict[str, Tensor] = {}
    with torch.enable_grad():
        for reading in streams_at(stages, calibration.clean[images]):
            if reading.stage.sublayer is None:
                continue
            if not reading.inner.requires_grad:
                reading.inner.requires_grad_(True)
            inners[reading.stage.name] = reading.inner
        logits = reading.behind
        score = fisher_metric(calibration.divergence, logits, calibration.draws[images])(logits)
        gradients = torch.autograd.grad(score.sum(), list(inners.values()))
    by_unit = {}
    for (name, module), inner, gradient in zip(sublayers_of(stages).items(), inners.values(), gradients, strict=True):
        ablated = of_images(reference[name], images).to(inner)
        by_channel = ((inner.detach() - ablated) * gradient).sum(dim=1)
        by_unit[name] = by_channel.unflatten(-1, (module.units, -1)).sum(dim=-1)
    return by_unit


def group_paths(stages: list[Stage], scores: Mapping[str, Tensor], paths: int) -> Paths:
    """The neurons of each MLP in `paths` groups of like importance, or fewer if it has fewer neurons.

    Group 0 has the least important neurons. Sizes differ by one neuron at most.
    """
    groups: dict[str, list[list[int]]] = {}
    for name, module in sublayers_of(stages).items():
        if module.kind == "neuron":
            order = torch.argsort(scores[name], stable=True)
            chunks = torch.tensor_split(order, min(paths, module.units))
            groups[name] = [sorted(chunk.tolist()) for chunk in chunks]
    return groups


def stream_scores(graph: EdgeGraph, scores: Mapping[str, Tensor]) -> dict[str, float]:
    """The scores of a block or head graph's edges, by name: each is the sum over its writer's units. The embedding's is
    0: it is the only writer of its visit, and needs no order."""
    return {
        edge.name: float(scores[edge.writer.sublayer][list(edge.writer.units)].sum()) if edge.writer.units else 0.0
        for edge in graph.edges()
    }

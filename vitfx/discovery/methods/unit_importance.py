"""How much KL divergence each head and hidden neuron carries: a first estimate that orders and groups, never decides.

The gate of a unit is 1 where it is whole and 0 where its ablation stands in. KL(G‖·) has no gradient at the whole
model; its own quadratic form there is the Fisher information ½·E[(∂ log p(y|x)/∂gate)²] with y drawn from the model,
and one backward pass gives it for every gate at once (Amari 1998; for pruning, Theis et al. 2018, arXiv:1801.05787).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from vitfx.circuits.edge_graph import EdgeGraph, Paths
from vitfx.discovery.basis.calibration import Calibration
from vitfx.discovery.basis.metric import drawn_from, log_probability
from vitfx.graph.stages import Reference, Stage, of_images

_BATCH = 16


def fisher_scores(
    stages: list[Stage],
    calibration: Calibration,
    reference: Reference,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Tensor]:
    """½·E[(∂ log p(y|x)/∂gate)²] of each unit, float64 (units,) for each sublayer, in nats an image.

    One y is drawn for each image, with `calibration.draws`.
    """
    totals = {
        stage.name: torch.zeros(stage.sublayer.units, dtype=torch.float64)
        for stage in stages
        if stage.sublayer is not None
    }
    count = len(calibration.clean)
    for start in range(0, count, _BATCH):
        images = slice(start, min(start + _BATCH, count))
        for name, gradients in _gate_gradients(stages, calibration, images, reference).items():
            totals[name] += gradients.double().square().sum(dim=0).cpu() / 2
        if progress is not None:
            progress(images.stop, count)
    return {name: calibration.mean(total) for name, total in totals.items()}


def _gate_gradients(
    stages: list[Stage], calibration: Calibration, images: slice, reference: Reference
) -> dict[str, Tensor]:
    """∂ log p(y|x)/∂gate, (N, units) for each sublayer."""
    inners: dict[str, tuple[Stage, Tensor]] = {}
    stream = calibration.clean[images]
    with torch.enable_grad():
        for stage in stages:
            if stage.sublayer is None:
                stream = stage(stream)
                continue
            inner = stage.inner(stream)
            if not inner.requires_grad:
                inner.requires_grad_(True)
            inners[stage.name] = (stage, inner)
            stream = stream + stage.sublayer.out(inner)
        log_p = log_probability(drawn_from(stream, calibration.draws[images]))(stream)
        gradients = torch.autograd.grad(log_p.sum(), [inner for _, inner in inners.values()])
    result = {}
    for (name, (stage, inner)), gradient in zip(inners.items(), gradients, strict=True):
        assert stage.sublayer is not None
        ablated = of_images(reference[name], images).to(inner)
        by_channel = ((inner.detach() - ablated) * gradient).sum(dim=1)
        result[name] = by_channel.unflatten(-1, (stage.sublayer.units, -1)).sum(dim=-1)
    return result


def group_paths(graph_stages: list[Stage], scores: Mapping[str, Tensor], paths: int) -> Paths:
    """The neurons of each MLP in `paths` groups (fewer where it has fewer neurons): like importance stands together.

    Group 0 has the least important neurons. Sizes differ by one neuron at most.
    """
    groups: dict[str, list[list[int]]] = {}
    for stage in graph_stages:
        module = stage.sublayer
        if module is None or module.kind != "neuron":
            continue
        order = torch.argsort(scores[stage.name], stable=True)
        chunks = torch.tensor_split(order, min(paths, module.units))
        groups[stage.name] = [sorted(chunk.tolist()) for chunk in chunks]
    return groups


def stream_scores(graph: EdgeGraph, scores: Mapping[str, Tensor]) -> dict[str, float]:
    """Of the edges of a block or head graph by name: the sum over each writer's units. The embedding's is 0: it is
    asked for alone, and needs no order."""
    return {
        edge.name: float(scores[edge.writer.sublayer][list(edge.writer.units)].sum()) if edge.writer.units else 0.0
        for edge in graph.edges()
    }

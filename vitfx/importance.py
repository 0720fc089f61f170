"""How much KL divergence each head and hidden neuron carries: a first estimate that orders and groups, never decides.

The gate of a unit is 1 where it is whole and 0 where its ablation stands in. KL(G‖·) has no gradient at the whole
model; its own quadratic form there is the Fisher information ½·E[(∂ log p(y|x)/∂gate)²] with y drawn from the model,
and one backward pass gives it for every gate at once (Amari 1998; for pruning, Theis et al. 2018, arXiv:1801.05787).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from vitfx.edge_graph import EdgeGraph, Paths
from vitfx.stages import Reference, Stage

_BATCH = 16


def fisher_scores(
    stages: list[Stage],
    pixels: Tensor,
    reference: Reference,
    *,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Tensor]:
    """½·E[(∂ log p(y|x)/∂gate)²] of each unit, float64 (units,) for each sublayer, in nats an image.

    pixels: (N, C, H, W). One y is drawn for each image, from a generator of this seed.
    """
    generator = torch.Generator().manual_seed(seed)
    totals: dict[str, Tensor] = {}
    for start in range(0, len(pixels), _BATCH):
        batch = pixels[start : start + _BATCH]
        rows = torch.arange(start, start + len(batch))
        for name, gradients in _gate_gradients(stages, batch, rows, reference, generator).items():
            squares = gradients.double().square().sum(dim=0) / 2
            totals[name] = totals[name] + squares if name in totals else squares
        if progress is not None:
            progress(start + len(batch), len(pixels))
    return {name: total.cpu() / len(pixels) for name, total in totals.items()}


def _gate_gradients(
    stages: list[Stage], pixels: Tensor, rows: Tensor, reference: Reference, generator: torch.Generator
) -> dict[str, Tensor]:
    """∂ log p(y|x)/∂gate, (N, units) for each sublayer."""
    inners: dict[str, tuple[Stage, Tensor]] = {}
    stream = pixels
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
        log_p = torch.log_softmax(stream, dim=-1)
        drawn = torch.multinomial(log_p.detach().exp().cpu().float(), 1, generator=generator).to(log_p.device)
        wanted = [inner for _, inner in inners.values()]
        gradients = torch.autograd.grad(log_p.gather(1, drawn).sum(), wanted)
    result = {}
    for (name, (stage, inner)), gradient in zip(inners.items(), gradients, strict=True):
        assert stage.sublayer is not None
        value = reference[name].to(inner)
        ablated = value[rows.to(value.device)] if value.dim() == 3 else value
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


def writer_scores(graph: EdgeGraph, scores: Mapping[str, Tensor]) -> dict[str, float]:
    """The score of each head and path by the writer's name: the sum over its units."""
    return {
        writer.name: float(scores[writer.sublayer][list(writer.units)].sum())
        for writer in graph.writers
        if writer.units
    }

"""Sizes of weights, a baseline that needs no data (Han et al. 2015, arXiv:1506.02626).

On the block and the head graph: the L2 norm of the weight matrices' entries that would be deleted with the writer's
units, rows of q, k, v or fc1 and columns of the projection; the embedding has all parameters before the first prunable
sublayer. On the edge and the qkv graph: ‖W_r · diag(γ) · W_w‖_F, with W_w the writer's columns of its projection (the
identity for the embedding), γ the scale of the reader's LayerNorm and W_r the reader's rows; the logits have γ alone,
of the LayerNorm that follows the last sublayer if one does.

Shapes: D width, E inner channels, R readers of one sublayer.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from passes.dialect import NORMS, Attention, Norm, Sublayer
from passes.plan import channels_of
from vitfx.circuits.circuit import EMBED, Writer
from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.discovery.methods.edge_gradients import by_name
from vitfx.graph.stages import Stage


@torch.no_grad()
def magnitude(graph: EdgeGraph) -> dict[str, float]:
    """The magnitude of each edge by its name. On the edge and the qkv graph it takes W·D² numbers of memory."""
    squares = _of_writers(graph) if graph.reads_stream else _of_pairs(graph)
    # Rounding alone can put a square below zero.
    return by_name(graph, torch.cat(list(squares)).double().clamp(min=0).sqrt().cpu())


def _of_writers(graph: EdgeGraph) -> Iterator[Tensor]:
    """Squares for the writers, a sublayer after the other."""
    before = [value for stage in graph.stages[: graph.first] for value in stage.module.parameters()]
    yield torch.stack([value.square().sum() for value in before]).sum()[None]
    for stage in graph.stages:
        module = stage.sublayer
        if module is None:
            continue
        by_unit = module.out.weight.square().unflatten(1, (module.units, -1)).sum(dim=(0, 2))
        for linear in module.linears:
            by_unit = by_unit + linear.weight.square().unflatten(0, (module.units, -1)).sum(dim=(1, 2))
        writers = [writer for writer in graph.writers if writer.sublayer == stage.name]
        yield torch.stack([by_unit[list(writer.units)].sum() for writer in writers])


def _of_pairs(graph: EdgeGraph) -> Iterator[Tensor]:
    """Squares for the edges of one sublayer's readers after the other.

    ‖A B‖² = ⟨AᵀA, B Bᵀ⟩, so that each matrix is multiplied once, whoever reads it.
    """
    modules = {stage.name: stage.sublayer for stage in graph.stages}
    last = modules[graph.stages[graph.last].name]
    assert last is not None
    eye = torch.eye(last.out.weight.shape[0]).to(last.out.weight)
    written = torch.stack([_written(modules.get(writer.sublayer), writer, eye) for writer in graph.writers])
    for stage in graph.stages[graph.first : graph.last + 1]:
        if stage.sublayer is not None:
            parents = len(graph.parents(next(one for one in graph.readers if one.sublayer == stage.name)))
            read = _read(stage, stage.sublayer, graph.granularity == "qkv")
            yield (read.flatten(1) @ written[:parents].flatten(1).T).flatten()
    behind = graph.stages[graph.last + 1].module
    scaled = eye * (_scale(behind) if isinstance(behind, NORMS) else 1)
    yield written.flatten(1) @ scaled.square().flatten()


def _written(module: Sublayer | None, writer: Writer, eye: Tensor) -> Tensor:
    """W_w W_wᵀ: (D, D)."""
    if module is None:
        assert writer.sublayer == EMBED
        return eye
    columns = module.out.weight[:, channels_of(writer.units, module.channels).to(eye.device)]
    return columns @ columns.T


def _read(stage: Stage, module: Sublayer, apart: bool) -> Tensor:
    """diag(γ) W_rᵀ W_r diag(γ) of a sublayer's readers, in the graph's order: (R, D, D)."""
    assert isinstance(stage.norm, NORMS)
    scale = _scale(stage.norm)
    readers = module.units if isinstance(module, Attention) else 1
    parts = []
    for linear in module.linears:
        rows = (linear.weight * scale).unflatten(0, (readers, -1))
        parts.append(rows.mT @ rows)
    return torch.stack(parts, dim=1).flatten(0, 1) if apart else torch.stack(parts).sum(dim=0)


def _scale(norm: Norm) -> Tensor | float:
    return 1.0 if norm.weight is None else norm.weight

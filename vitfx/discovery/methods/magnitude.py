"""The size of weights, a baseline that needs no data (Han et al. 2015, arXiv:1506.02626).

On the block and the head graph an edge's score is the L2 norm of the weights that would be deleted with the writer's
units: rows of q, k, v or fc1, and columns of the projection. The embedding's is that of all parameters before the first
prunable sublayer. On the edge and the qkv graph it is ‖W_r · diag(γ) · W_w‖_F, with W_w the writer's columns of its
projection (for the embedding the identity), γ the scale of the reader's LayerNorm, and W_r the reader's rows. For the
logits it is γ alone, of the LayerNorm behind the last sublayer, if there is one.

Shapes: D width, E inner channels, R readers of one sublayer.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from passes.dialect import Attention, Sublayer
from passes.norms import NORMS, Norm
from passes.plan import channels_of
from vitfx.circuits.circuit import EMBED, Writer
from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.discovery.methods.edge_gradients import by_name
from vitfx.graph.stages import Stage, sublayers_of


@torch.no_grad()
def magnitude(graph: EdgeGraph) -> dict[str, float]:
    """Each edge's score, by its name. Of W writers, the edge and the qkv graph take W·D² numbers of memory."""
    squares = _of_writers(graph) if graph.reads_stream else _of_pairs(graph)
    # Rounding can make a square of next to nothing negative.
    return by_name(graph, torch.cat(list(squares)).double().clamp(min=0).sqrt().cpu())


def _of_writers(graph: EdgeGraph) -> Iterator[Tensor]:
    """The writers' squares, one sublayer after another."""
    before = [value for stage in graph.stages[: graph.first] for value in stage.module.parameters()]
    yield torch.stack([value.square().sum() for value in before]).sum()[None]
    for name, module in sublayers_of(graph.stages).items():
        by_unit = module.out.weight.square().unflatten(1, (module.units, -1)).sum(dim=(0, 2))
        for linear in module.linears:
            by_unit = by_unit + linear.weight.square().unflatten(0, (module.units, -1)).sum(dim=(1, 2))
        yield torch.stack([by_unit[list(writer.units)].sum() for writer in graph.writers_of(name)])


def _of_pairs(graph: EdgeGraph) -> Iterator[Tensor]:
    """The edges' squares, one sublayer's readers after another's.

    ‖A B‖² = ⟨AᵀA, B Bᵀ⟩, so each writer's product is computed once for all its readers.
    """
    modules = sublayers_of(graph.stages)
    last = modules[graph.stages[graph.last].name]
    eye = torch.eye(last.out.weight.shape[0]).to(last.out.weight)
    written = torch.stack([_written(modules.get(writer.sublayer), writer, eye) for writer in graph.writers])
    for stage in graph.stages[graph.first : graph.last + 1]:
        if stage.sublayer is not None:
            parents = len(graph.parents(graph.readers_of(stage.name)[0]))
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
    """diag(γ) W_rᵀ W_r diag(γ) for a sublayer's readers, in the graph's order: (R, D, D)."""
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

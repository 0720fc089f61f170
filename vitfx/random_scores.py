"""Random scores, the baseline that every other must beat."""

from __future__ import annotations

import torch

from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.edge_means import by_name


def random_scores(graph: EdgeGraph, seed: int) -> dict[str, float]:
    """A number from [0, 1) for each edge by its name, drawn in the order of `graph.edges()` from this seed."""
    generator = torch.Generator().manual_seed(seed)
    return by_name(graph, torch.rand(len(graph.edges()), dtype=torch.float64, generator=generator))

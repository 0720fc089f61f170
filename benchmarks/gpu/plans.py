"""Deletion plans for a share of the heads, the neurons or the sublayers, chosen by chance: times don't ask which."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.fx import GraphModule

from passes.plan import DeletionPlan, SublayerDeletion
from passes.stream import Site, read_sites

HEADS, ALIGNED, ODD, SUBLAYERS = "heads", "neurons÷8", "neurons", "sublayers"
KINDS = (HEADS, ALIGNED, ODD, SUBLAYERS)
"""Heads are whole blocks of 64 channels and so aligned by themselves; of neurons a multiple of 8 is left, or an odd
number beside it."""


def plan_for(graph_module: GraphModule, kind: str, share: float, seed: int, constants: bool = False) -> DeletionPlan:
    """A plan that deletes about `share` of the units of a kind, spread over the layers.

    constants: the dead leave random constants behind, as they do in real plans, where the proof has to see them.
    """
    sites = read_sites(graph_module)
    generator = torch.Generator().manual_seed(seed)
    counts = {HEADS: _heads, ALIGNED: _aligned, ODD: _odd, SUBLAYERS: _sublayers}[kind](sites, share, generator)
    deletions = []
    for site, count in zip(sites, counts, strict=True):
        if count:
            total, width = site.module.units, site.module.out.weight.shape[0]
            units = tuple(sorted(torch.randperm(total, generator=generator)[:count].tolist()))
            value = torch.randn(width, dtype=torch.float64, generator=generator) / 10 if constants else None
            deletions.append(SublayerDeletion(site.name, site.module.kind, units, total, value))
    return DeletionPlan(tuple(deletions))


def _heads(sites: Sequence[Site], share: float, generator: torch.Generator) -> list[int]:
    """In turns over the layers, so that as many as possible keep some."""
    owners = [at for at, site in enumerate(sites) if site.module.kind == "head"]
    counts = [0] * len(sites)
    heads = sum(sites[at].module.units for at in owners)
    turns = [owners[at] for at in torch.randperm(len(owners), generator=generator).tolist()]
    for number in range(round(share * heads)):
        counts[turns[number % len(turns)]] += 1
    return [min(count, site.module.units) for count, site in zip(counts, sites, strict=True)]


def _aligned(sites: Sequence[Site], share: float, generator: torch.Generator) -> list[int]:
    def kept(total: int) -> int:
        return max(8, round((1 - share) * total / 8) * 8)

    return [
        max(0, site.module.units - kept(site.module.units)) if site.module.kind == "neuron" else 0 for site in sites
    ]


def _odd(sites: Sequence[Site], share: float, generator: torch.Generator) -> list[int]:
    """One neuron fewer is left in each MLP than where they are aligned."""
    aligned = _aligned(sites, share, generator)
    return [count + (site.module.kind == "neuron") for count, site in zip(aligned, sites, strict=True)]


def _sublayers(sites: Sequence[Site], share: float, generator: torch.Generator) -> list[int]:
    gone = set(torch.randperm(len(sites), generator=generator)[: round(share * len(sites))].tolist())
    return [site.module.units if at in gone else 0 for at, site in enumerate(sites)]

"""What the units of a pruned model are worth, and how far they can stand in for each other.

A unit's worth is the Fisher information of its gate in the model as it stands. Let δ be what replacing the unit by its
mean adds to the stream behind its sublayer: D_KL(M‖M + δ) ≈ ½ E_y[(∇ log p(y) · δ)²], y drawn from the model M (Amari
1998; for pruning, Theis et al. 2018, arXiv:1801.05787). The expectation is estimated with one vector of random signs ε
an image, Σ_y ε_y √p(y) ∇ log p(y), whose square is unbiased (Hutchinson 1990) and varies less than that of one drawn y.
One forward and one backward pass give it for every unit, deleted ones included: what those would be worth if they came
back. Other kinds of answers than classes have their divergence's own quadratic form (`vitfx.graph.divergence`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from passes.least_squares import gram
from passes.plan import DeletionPlan, channels_of
from vitfx.graph.divergence import CLASSES, Divergence
from vitfx.graph.stages import Stage, streams_at, sublayers_of
from vitfx.support.progress import Report

BATCH = 16


@dataclass(frozen=True)
class PlannedProjection:
    """A sublayer's projection as the plan leaves it, for all of its units: deleted ones have no weight."""

    weight: Tensor  #: (D, E), zero in the deleted units' columns
    bias: Tensor  #: (D,) or (T, D), including what the deleted units left behind
    deleted: Tensor  #: bool (units,)


@dataclass(frozen=True)
class UnitWorth:
    """What the units of one sublayer are worth, float64 on the CPU."""

    fisher: Tensor  #: nats an image of each unit, (units,)
    covariance: Tensor  #: of the inner channels over images and tokens, (E, E)


def planned_projections(stages: Sequence[Stage], plan: DeletionPlan) -> dict[str, PlannedProjection]:
    """The projections of the sublayers that the plan prunes or refits, by name."""
    modules = sublayers_of(stages)
    deletions = {deletion.name: deletion for deletion in plan.deletions}
    refits = {refit.name: refit for refit in plan.refits}
    projections = {}
    for name in deletions.keys() | refits.keys():
        module, deletion, refit = modules[name], deletions.get(name), refits.get(name)
        deleted = torch.zeros(module.units, dtype=torch.bool)
        weight, bias = module.out.weight.detach().clone(), module.out.weight.new_zeros(module.out.weight.shape[0])
        if module.out.bias is not None:
            bias = module.out.bias.detach()
        if deletion is not None:
            deleted[list(deletion.units)] = True
            weight[:, channels_of(deletion.units, module.channels).to(weight.device)] = 0
            bias = bias if deletion.constant is None else bias + deletion.constant.to(bias)
        if refit is not None:
            kept = channels_of((~deleted).nonzero().flatten().tolist(), module.channels)
            weight[:, kept.to(weight.device)] = refit.weight.to(weight)
            bias = bias + refit.shift.to(bias)
        projections[name] = PlannedProjection(weight, bias, deleted)
    return projections


def unit_worth(
    stages: Sequence[Stage],
    projections: Mapping[str, PlannedProjection],
    pixels: Tensor,
    *,
    seed: int,
    measure: Divergence = CLASSES,
    progress: Report | None = None,
) -> dict[str, UnitWorth]:
    """What every unit of every sublayer is worth.

    stages: of the original model
    projections: of those of its sublayers that are pruned or refitted
    pixels: (N, C, H, W)
    seed: of the random signs
    """
    generator = torch.Generator().manual_seed(seed)
    sums: dict[str, _Sums] = {}
    for start in range(0, len(pixels), BATCH):
        batch = pixels[start : start + BATCH]
        inners, gradients = _run(stages, projections, batch, generator, measure)
        with torch.no_grad():
            for (stage, inner), gradient in zip(inners, gradients, strict=True):
                weight = _weight(stage, projections.get(stage.name))
                slope = gradient[..., : len(weight)] @ weight
                sums.setdefault(stage.name, _Sums()).add(inner, slope)
        if progress is not None:
            progress(start + len(batch), len(pixels))
    modules = sublayers_of(stages)
    return {name: total.unit_worth(modules[name].units) for name, total in sums.items()}


def _run(
    stages: Sequence[Stage],
    projections: Mapping[str, PlannedProjection],
    pixels: Tensor,
    generator: torch.Generator,
    measure: Divergence,
) -> tuple[list[tuple[Stage, Tensor]], tuple[Tensor, ...]]:
    """Each sublayer's inner channels, and the gradient of the random score at the stream behind it."""
    inners: list[tuple[Stage, Tensor]] = []
    behind: list[Tensor] = []
    with torch.enable_grad():
        for reading in streams_at(stages, pixels):
            stage = reading.stage
            if stage.sublayer is None:
                continue
            if (projection := projections.get(stage.name)) is not None:
                out = reading.inner @ projection.weight.T + projection.bias
                carried = stage.carried(reading.stream)
                reading.behind = stage.forked(carried + out, carried)
            if not reading.behind.requires_grad:
                reading.behind.requires_grad_()
            inners.append((stage, reading.inner.detach()))
            behind.append(reading.behind)
        answers = reading.behind
        signs = torch.randint(0, 2, answers.shape, generator=generator).to(answers) * 2 - 1
        return inners, torch.autograd.grad(measure.score(answers, signs), behind)


def _weight(stage: Stage, projection: PlannedProjection | None) -> Tensor:
    """The weight that each unit is judged by: the refitted one where it survives, its own where it is deleted."""
    assert stage.sublayer is not None
    own = stage.sublayer.out.weight
    if projection is None:
        return own
    deleted = projection.deleted.to(own.device).repeat_interleave(stage.sublayer.channels)
    return torch.where(deleted, own, projection.weight)


@dataclass
class _Sums:
    """Sums over the images for one sublayer. The mean that replaces a unit is known only at the end."""

    rows: int = 0  #: images times tokens
    total: Tensor = field(default_factory=lambda: torch.zeros(()))  #: of the inner channels
    gram: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    along: list[Tensor] = field(default_factory=list)  #: Σ over tokens of inner · slope, (N, E) a batch
    slopes: list[Tensor] = field(default_factory=list)  #: Σ over tokens of the slope, (N, E) a batch

    def add(self, inner: Tensor, slope: Tensor) -> None:
        """inner, slope: (N, T, E), the inner channels and the score's derivative with respect to them."""
        flat = inner.flatten(0, 1)
        self.rows += len(flat)
        self.total = self.total + flat.double().sum(dim=0).cpu()
        self.gram = self.gram + gram(flat).cpu()
        self.along.append((inner * slope).sum(dim=1).cpu())
        self.slopes.append(slope.sum(dim=1).cpu())

    def unit_worth(self, units: int) -> UnitWorth:
        mean = self.total / self.rows
        change = mean * torch.cat(self.slopes).double() - torch.cat(self.along).double()
        by_unit = change.unflatten(-1, (units, -1)).sum(dim=-1)
        return UnitWorth(by_unit.square().mean(dim=0) / 2, self.gram / self.rows - torch.outer(mean, mean))

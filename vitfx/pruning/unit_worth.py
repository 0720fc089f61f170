"""What the units of a pruned model are worth, and how far they can stand in for each other.

Worth is the Fisher information of a unit's gate at the model as it stands: with δ what replacing the unit by its mean
adds to the stream behind its sublayer, D_KL(M‖M + δ) ≈ ½ E_y[(∇ log p(y) · δ)²], y drawn from the model M (Amari
1998; for pruning, Theis et al. 2018, arXiv:1801.05787). The expectation is taken with one vector of random signs ε an
image, Σ_y ε_y √p(y) ∇ log p(y), whose square is unbiased (Hutchinson 1990) and varies less than with one y drawn. One
forward and one backward pass give it for every unit, those that are gone as well: what they would be worth if they
came back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from passes.plan import DeletionPlan, channels_of
from vitfx.graph.stages import Stage, streams_at, sublayers_of
from vitfx.support.progress import Report

BATCH = 16


@dataclass(frozen=True)
class Mended:
    """A sublayer as pruned: every unit is computed, and what is deleted has no weight.

    weight: (D, E), the deleted units' columns zero. bias: (D,) or (T, D), what the deleted left behind in it.
    gone: bool (units,).
    """

    weight: Tensor
    bias: Tensor
    gone: Tensor


@dataclass(frozen=True)
class Surveyed:
    """Of one sublayer, float64 on the CPU. fisher: nats an image of each unit, (units,). covariance: of its inner
    channels over images and tokens, (E, E)."""

    fisher: Tensor
    covariance: Tensor


def mend(stages: Sequence[Stage], plan: DeletionPlan) -> dict[str, Mended]:
    """The sublayers that the plan prunes or refits, by their names."""
    modules = sublayers_of(stages)
    deletions = {one.name: one for one in plan.deletions}
    refits = {one.name: one for one in plan.refits}
    found = {}
    for name in deletions.keys() | refits.keys():
        module, deletion, refit = modules[name], deletions.get(name), refits.get(name)
        gone = torch.zeros(module.units, dtype=torch.bool)
        weight, bias = module.out.weight.detach().clone(), module.out.weight.new_zeros(module.out.weight.shape[0])
        if module.out.bias is not None:
            bias = module.out.bias.detach()
        if deletion is not None:
            gone[list(deletion.units)] = True
            weight[:, channels_of(deletion.units, module.channels).to(weight.device)] = 0
            bias = bias if deletion.constant is None else bias + deletion.constant.to(bias)
        if refit is not None:
            kept = channels_of((~gone).nonzero().flatten().tolist(), module.channels)
            weight[:, kept.to(weight.device)] = refit.weight.to(weight)
            bias = bias + refit.shift.to(bias)
        found[name] = Mended(weight, bias, gone)
    return found


def survey(
    stages: Sequence[Stage],
    mended: Mapping[str, Mended],
    pixels: Tensor,
    *,
    seed: int,
    progress: Report | None = None,
) -> dict[str, Surveyed]:
    """stages: of the original model. mended: those of its sublayers that are pruned. pixels: (N, C, H, W). seed: of the
    random signs."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, _Sums] = {}
    for start in range(0, len(pixels), BATCH):
        batch = pixels[start : start + BATCH]
        inners, gradients = _run(stages, mended, batch, generator)
        with torch.no_grad():
            for (stage, inner), gradient in zip(inners, gradients, strict=True):
                found.setdefault(stage.name, _Sums()).add(inner, gradient @ _weight(stage, mended.get(stage.name)))
        if progress is not None:
            progress(start + len(batch), len(pixels))
    modules = sublayers_of(stages)
    return {name: sums.surveyed(modules[name].units) for name, sums in found.items()}


def _run(
    stages: Sequence[Stage], mended: Mapping[str, Mended], pixels: Tensor, generator: torch.Generator
) -> tuple[list[tuple[Stage, Tensor]], tuple[Tensor, ...]]:
    """The inner channels of each sublayer, and the gradient of the random score at the stream behind it."""
    inners: list[tuple[Stage, Tensor]] = []
    behind: list[Tensor] = []
    with torch.enable_grad():
        for reading in streams_at(stages, pixels):
            stage = reading.stage
            if stage.sublayer is None:
                continue
            if (pruned := mended.get(stage.name)) is not None:
                reading.behind = stage.carried(reading.stream) + (reading.inner @ pruned.weight.T + pruned.bias)
            if not reading.behind.requires_grad:
                reading.behind.requires_grad_()
            inners.append((stage, reading.inner.detach()))
            behind.append(reading.behind)
        log_p = reading.behind.log_softmax(-1)
        signs = torch.randint(0, 2, log_p.shape, generator=generator).to(log_p) * 2 - 1
        score = (log_p.detach().exp().sqrt() * signs * log_p).sum()
        return inners, torch.autograd.grad(score, behind)


def _weight(stage: Stage, mended: Mended | None) -> Tensor:
    """The projection through which each unit is seen: refitted where it is there, its own where it is gone."""
    assert stage.sublayer is not None
    own = stage.sublayer.out.weight
    if mended is None:
        return own
    return torch.where(mended.gone.to(own.device).repeat_interleave(stage.sublayer.channels), own, mended.weight)


@dataclass
class _Sums:
    """Of one sublayer, over images. The mean that a unit is replaced with is known only at the end."""

    rows: int = 0
    total: Tensor = field(default_factory=lambda: torch.zeros(()))
    gram: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    along: list[Tensor] = field(default_factory=list)
    slopes: list[Tensor] = field(default_factory=list)

    def add(self, inner: Tensor, slope: Tensor) -> None:
        """Both (N, T, E): the inner channels, and the score's derivative by them."""
        flat = inner.flatten(0, 1)
        self.rows += len(flat)
        self.total = self.total + flat.double().sum(dim=0).cpu()
        self.gram = self.gram + (flat.T @ flat).double().cpu()
        self.along.append((inner * slope).sum(dim=1).cpu())
        self.slopes.append(slope.sum(dim=1).cpu())

    def surveyed(self, units: int) -> Surveyed:
        mean = self.total / self.rows
        change = mean * torch.cat(self.slopes).double() - torch.cat(self.along).double()
        by_unit = change.unflatten(-1, (units, -1)).sum(dim=-1)
        return Surveyed(by_unit.square().mean(dim=0) / 2, self.gram / self.rows - torch.outer(mean, mean))

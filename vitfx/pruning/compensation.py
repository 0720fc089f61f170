"""Survivors make up for the dead, without training: from a deletion plan to one with refitted projections.

Sublayer by sublayer along the stream, the projection of what survives is fitted anew, so that the stream which the
pruned model really produces comes as near as a linear map can bring it to the *original's* stream, where the next
survivor reads it. So survivors mend what deletions before them did as well, heads as much as neurons, and a sublayer
that is deleted whole is made up for by the survivors around it. Behind the last mixing of tokens only those that the
logits read are fitted.

Shapes: N images, T tokens, D width, E inner channels.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from passes.compensate import refitted
from passes.least_squares import Moments, Ridge, ridge
from passes.plan import DeletionPlan, Refit
from vitfx.graph.divergence import kl_divergence
from vitfx.graph.narrow import Narrowed, narrow
from vitfx.graph.stages import Stage, contribution, read_stages, streams_at
from vitfx.graph.verify import rewrite
from vitfx.support.progress import Report

KINDS = ("none", "mean", "ridge")
_BATCH = 32
_CHOOSES = 4  # one batch of so many chooses the shrinkage
_COMPARES = 8  # one image of so many compares ridge with the mean


@dataclass(frozen=True)
class Refitted:
    """How a sublayer's refit went. shrinkage: see `passes.least_squares`, None where no map of what survives helped.
    before, after: the mean square of what is missing from a token's stream, on images that the fit did not see."""

    name: str
    shrinkage: float | None
    before: float
    after: float


@dataclass(frozen=True)
class Compensated:
    """plan: with what makes up for its deletions. kind: "ridge", or "mean" where ridge was no better. refits: how it
    went. images: that it was fitted on. kl: mean D_KL(original ‖ pruned) in nats on `held_out` images that the fit did
    not see; kl_mean: with the mean alone in place of the dead. None where nothing was compared."""

    plan: DeletionPlan
    kind: str
    refits: tuple[Refitted, ...] = ()
    images: int = 0
    held_out: int = 0
    kl: float | None = None
    kl_mean: float | None = None

    @property
    def sentence(self) -> str:
        """What it gained, for a person; where something was compared."""
        return (
            f"survivors refitted on {self.images} images: on {self.held_out} others, D_KL from the original is "
            f"{self.kl:.4f}, {self.kl_mean:.4f} with the mean in place of the dead"
            + ("" if self.kind == "ridge" else ", so that the mean stays")
        )

    def to_json(self) -> dict[str, Any]:
        """All but the plan."""
        record = {name: getattr(self, name) for name in ("kind", "images", "held_out", "kl", "kl_mean")}
        return {**record, "refits": [vars(one) for one in self.refits]}


def compensate(
    original: GraphModule, plan: DeletionPlan, pixels: Tensor, kind: str = "ridge", *, progress: Report | None = None
) -> Compensated:
    """What makes up for a plan's deletions, by these images (N, C, H, W), two at least.

    kind: "none", the dead leave nothing behind; "mean", their mean (the plan's constants, worked out where it has
    none); "ridge", survivors are refitted, and the last eighth of the images, which the fit does not see, says whether
    that is better than the mean: where it isn't, or there are fewer than three images, the mean stays.
    """
    if kind not in KINDS:
        raise ValueError(f"compensation {kind!r} is not one of {', '.join(KINDS)}")
    if kind == "none":
        return Compensated(DeletionPlan(tuple(replace(one, constant=None) for one in plan.deletions)), kind)
    refit = kind == "ridge" and plan.deletions and len(pixels) > 2
    held = max(1, len(pixels) // _COMPARES) if refit else 0
    fitted, held_out = pixels[: len(pixels) - held], pixels[len(pixels) - held :]
    mean = with_means(original, DeletionPlan(plan.deletions), fitted)
    if not held:
        return Compensated(mean, "mean", images=len(fitted))
    found = Compensator(original, fitted)(mean, progress)
    kl_mean, kl = (divergence(original, one, held_out) for one in (mean, found.plan))
    if not kl < kl_mean:
        found = replace(found, plan=mean, kind="mean")
    return replace(found, held_out=held, kl=kl, kl_mean=kl_mean)


class Compensator:
    """Refits plans of one model on the same images.

    pixels: (N, C, H, W), two at least: one to fit and one to choose the shrinkage on. keep: the original's streams are
    kept between calls, which takes N·T·D numbers for each sublayer and saves its run, a third of the time. Without, two
    streams and a batch of one sublayer's inner channels are in memory.
    """

    def __init__(self, original: GraphModule, pixels: Tensor, *, keep: bool = False) -> None:
        self.original = original
        self.pixels = pixels.to(next(original.parameters()).device)
        self._batch = max(1, min(_BATCH, len(pixels) // _CHOOSES))
        self._narrowed = self._narrow(original)
        self._kept = list(self._streams()) if keep else None

    @torch.no_grad()
    def __call__(self, plan: DeletionPlan, progress: Report | None = None) -> Compensated:
        """The plan with refits from its first deletion on. Refits that it has are left out; constants that it has are
        mended, and those that it has not are not needed."""
        plan = DeletionPlan(plan.deletions)
        pruned = self._narrow(rewrite(self.original, plan).graph_module.eval())
        targets = iter(self._streams() if self._kept is None else self._kept)
        names = [stage.name for stage in self._narrowed.stages]
        gone = {one.name for one in plan.deletions}
        touched = False
        fits: list[tuple[Stage, Ridge]] = []
        for index, reading in enumerate(streams_at(pruned.stages, self.pixels, self._batch)):
            stage = reading.stage
            touched = touched or _changed(plan, names, stage.name, pruned.stages[index + 1 :])
            if touched and stage.sublayer is not None:
                reader = next(one.name for one in pruned.stages[index + 1 :] if one.name in names)
                target = next(value for name, value in targets if name == reader)
                fit = ridge(*self._moments(pruned, stage, reading.stream, target))
                fits.append((stage, fit))
                if fit.change is not None or stage.name in gone:
                    _install(stage, fit)
            if progress is not None:
                progress(index + 1, len(pruned.stages))
        report = tuple(Refitted(stage.name, fit.shrinkage, fit.before, fit.after) for stage, fit in fits)
        return Compensated(_with_fits(plan, fits), "ridge", report, len(self.pixels))

    def _narrow(self, graph_module: GraphModule) -> Narrowed:
        return narrow(read_stages(graph_module), self.pixels[:2])

    @torch.no_grad()
    def _streams(self) -> Iterator[tuple[str, Tensor]]:
        """The original's stream as each stage reads it."""
        for reading in streams_at(self._narrowed.stages, self.pixels, self._batch):
            yield reading.stage.name, reading.stream

    def _moments(self, pruned: Narrowed, stage: Stage, stream: Tensor, target: Tensor) -> tuple[Moments, Moments]:
        """Of the surviving inner channels and what is missing behind them: to fit, and to choose the shrinkage."""
        assert stage.sublayer is not None
        found: list[Moments | None] = [None, None]
        for number, (batch, goal) in enumerate(zip(stream.split(self._batch), target.split(self._batch), strict=True)):
            inner = stage.inner(batch)
            got = stage.carried(batch) + stage.sublayer.out(inner)
            # Where only one of the two models mixes tokens later on, the other carries fewer of them.
            if got.shape[1] < goal.shape[1]:
                goal = goal[:, pruned.tokens]
            elif got.shape[1] > goal.shape[1]:
                inner, got = inner[:, self._narrowed.tokens], got[:, self._narrowed.tokens]
            moments = Moments.of(inner.flatten(0, 1), (goal - got).flatten(0, 1))
            part = int(number % _CHOOSES == 1)
            old = found[part]
            found[part] = moments if old is None else old + moments
        fitted, chooses = found
        assert fitted is not None and chooses is not None
        return fitted, chooses


def _changed(plan: DeletionPlan, names: list[str], name: str, behind: tuple[Stage, ...]) -> bool:
    """What the next stage reads is not the original's stream any more: this stage lost units, or what stood between."""
    following = next((one.name for one in behind if one.name in names), None)
    between = names[names.index(name) : None if following is None else names.index(following)] if name in names else []
    return any(one.name in between for one in plan.deletions)


def _install(stage: Stage, fit: Ridge) -> None:
    """From here on the stage writes as fitted."""
    module = stage.sublayer
    assert module is not None
    weight = module.out.weight.detach()
    module.out = refitted(module.out, weight if fit.change is None else weight + fit.change.to(weight), fit.shift)


def _with_fits(plan: DeletionPlan, fits: list[tuple[Stage, Ridge]]) -> DeletionPlan:
    """Fits without a map go into the constants of what was deleted there, if anything was."""
    refits, shifts = [], {}
    for stage, fit in fits:
        assert stage.sublayer is not None
        if fit.change is None:
            shifts[stage.name] = fit.shift.cpu()
        else:
            refits.append(Refit(stage.name, stage.sublayer.out.weight.detach().cpu(), fit.shift.cpu()))
    deletions = tuple(
        replace(one, constant=shifts[one.name] + (0 if one.constant is None else one.constant))
        if one.name in shifts
        else one
        for one in plan.deletions
    )
    return DeletionPlan(deletions, tuple(refits))


@torch.no_grad()
def with_means(original: GraphModule, plan: DeletionPlan, pixels: Tensor) -> DeletionPlan:
    """The plan with the mean of what is deleted, over images and tokens, where it has no constant."""
    wanted = {one.name: one for one in plan.deletions if one.constant is None}
    if not wanted:
        return plan
    device = next(original.parameters()).device
    sums: dict[str, Tensor] = {}
    constants: dict[str, Tensor] = {}
    stages = read_stages(original)
    for batch in pixels.split(_BATCH):
        for reading in streams_at(stages, batch.to(device)):
            if (name := reading.stage.name) in wanted:
                total = reading.inner.double().mean(dim=1).sum(dim=0)
                sums[name] = sums[name] + total if name in sums else total
    for stage in stages:
        if stage.name in wanted and stage.sublayer is not None:
            mean = sums[stage.name] / len(pixels)
            constants[stage.name] = contribution(stage.sublayer, wanted[stage.name].units, mean, double=True).cpu()
    deletions = tuple(replace(one, constant=constants.get(one.name, one.constant)) for one in plan.deletions)
    return replace(plan, deletions=deletions)


@torch.no_grad()
def divergence(original: GraphModule, plan: DeletionPlan, pixels: Tensor) -> float:
    """Mean D_KL(original ‖ pruned) in nats an image."""
    pruned = rewrite(original, plan).graph_module.eval()
    device = next(original.parameters()).device
    batches = [batch.to(device) for batch in pixels.split(_BATCH)]
    return sum(float(kl_divergence(original(one), pruned(one)).sum()) for one in batches) / len(pixels)

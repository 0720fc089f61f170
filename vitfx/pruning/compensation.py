"""Survivors make up for deletions, without training: from a deletion plan to one with refitted projections.

Sublayer by sublayer along the stream, the projection of the surviving units is refitted. It brings the stream that the
pruned model really produces as close as a linear map can to the *original's* stream at the next surviving reader. So
survivors also correct for deletions before them, heads as well as neurons, and the survivors around a sublayer that is
deleted whole make up for it. Behind the last mixing of tokens only the tokens that the logits read are fitted.

Shapes: N images, T tokens, D width, E inner channels.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from passes.compensate import refitted
from passes.dialect import Sublayer
from passes.least_squares import Moments, Ridge, ridge
from passes.merge_tokens import MergeBySchedule
from passes.plan import DeletionPlan, Refit
from vitfx.graph.divergence import CLASSES, Divergence
from vitfx.graph.kinds import WORDS
from vitfx.graph.narrow import Narrowed, narrow
from vitfx.graph.stages import KeptBatches, Stage, contribution, read_stages, streams_at
from vitfx.graph.verify import rewritten
from vitfx.support.progress import Report

KINDS = ("none", "mean", "ridge")
_BATCH = 32
_CHOOSES = 4  # every fourth batch chooses the shrinkage
_COMPARES = 8  # every eighth image compares ridge with the mean


@dataclass(frozen=True)
class RefitReport:
    """How a sublayer's refit went."""

    name: str
    shrinkage: float | None  #: see `passes.least_squares`; None where no map of the survivors helped
    before: float  #: mean square of what a token's stream lacks, on images that the fit did not see
    after: float  #: the same with the refit


@dataclass(frozen=True)
class Compensated:
    """A plan with what makes up for its deletions."""

    plan: DeletionPlan
    kind: str  #: one of `KINDS`; "mean" also where "ridge" was asked for and was no better
    refits: tuple[RefitReport, ...] = ()
    images: int = 0  #: that it was fitted on
    held_out: int = 0  #: images that the fit did not see
    kl: float | None = None  #: mean D_KL(original ‖ pruned) in nats on them; None where nothing was compared
    kl_mean: float | None = None  #: the same with only the mean in place of deleted units
    task: str = "classes"  #: the kind of answers, whose divergence stands for KL

    @property
    def sentence(self) -> str:
        """What refitting gained, where that was compared."""
        return (
            f"survivors refitted on {self.images} images: on {self.held_out} others, {_name(self.task)} from the "
            f"original is {self.kl:.4f}, against {self.kl_mean:.4f} with only the mean in place of deleted units"
            + ("" if self.kind == "ridge" else ", so the mean stays")
        )

    def to_json(self) -> dict[str, Any]:
        """All but the plan."""
        record = {name: getattr(self, name) for name in ("kind", "images", "held_out", "kl", "kl_mean")}
        return {**record, "refits": [vars(refit) for refit in self.refits]}


def _name(task: str) -> str:
    return "D_KL" if task == "classes" else f"the {WORDS[task].divergence}"


def compensate(
    original: GraphModule,
    plan: DeletionPlan,
    pixels: Tensor,
    kind: str = "ridge",
    *,
    measure: Divergence = CLASSES,
    progress: Report | None = None,
) -> Compensated:
    """Makes up for a plan's deletions, fitted on at least two images (N, C, H, W).

    kind "none": deleted units leave nothing behind.
    kind "mean": they leave their mean (the plan's constants, computed where it has none).
    kind "ridge": survivors are refitted. The last eighth of the images, which the fit does not see, decides whether
    that beats the mean; if it does not, or there are fewer than three images, the mean stays.
    """
    if kind not in KINDS:
        raise ValueError(f"compensation {kind!r} is not one of {', '.join(KINDS)}")
    if kind == "none":
        return Compensated(plan.without_constants(), kind)
    refit = kind == "ridge" and plan.deletions and len(pixels) > 2
    held = max(1, len(pixels) // _COMPARES) if refit else 0
    fitted, held_out = pixels[: len(pixels) - held], pixels[len(pixels) - held :]
    mean = with_means(original, DeletionPlan(plan.deletions), fitted)
    if not held:
        return Compensated(mean, "mean", images=len(fitted))
    refitted_plan = Compensator(original, fitted)(mean, progress)
    kl_mean, kl = (divergence(original, either, held_out, measure) for either in (mean, refitted_plan.plan))
    if not kl < kl_mean:
        refitted_plan = replace(refitted_plan, plan=mean, kind="mean")
    return replace(refitted_plan, held_out=held, kl=kl, kl_mean=kl_mean, task=measure.kind)


class Compensator:
    """Refits plans of one model on the same images.

    pixels: (N, C, H, W), at least two: one to fit, and one to choose the shrinkage
    keep: keeps the original's streams between calls, N·T·D numbers for each sublayer, which saves its run, a third of
        the time; otherwise memory holds two streams and, up to a GiB, one sublayer's inner channels
    """

    def __init__(
        self, original: GraphModule, pixels: Tensor, *, keep: bool = False, progress: Report | None = None
    ) -> None:
        self.original = original
        self.pixels = pixels.to(next(original.parameters()).device)
        self._batch = batch_size(len(pixels))
        self._narrowed = self._narrow(original)
        self._kept = list(self._streams(progress)) if keep else None

    @torch.no_grad()
    def __call__(self, plan: DeletionPlan, progress: Report | None = None) -> Compensated:
        """The plan with refits from its first deletion on. Its own refits are dropped, its constants corrected; it
        need not have any."""
        plan = DeletionPlan(plan.deletions)
        pruned = self._narrow(rewritten(self.original, plan))
        targets = iter(self._streams() if self._kept is None else self._kept)
        names = [stage.name for stage in self._narrowed.stages]
        deleted = {deletion.name for deletion in plan.deletions}
        touched = False
        fits: list[tuple[Stage, Ridge]] = []
        for index, reading in enumerate(streams_at(pruned.stages, self.pixels, self._batch)):
            stage = reading.stage
            touched = touched or _changed(plan, names, stage.name, pruned.stages[index + 1 :])
            if touched and stage.sublayer is not None:
                reader = next(after.name for after in pruned.stages[index + 1 :] if after.name in names)
                target = next(old.target(value, forked=stage.forks) for old, value in targets if old.name == reader)
                batches = reading.stream.split(self._batch)
                inner = KeptBatches(stage.inner, batches)
                fit = fit_batches(self._missing(pruned, stage, batches, inner, target.split(self._batch)))
                fits.append((stage, fit))
                if fit.change is not None or stage.name in deleted:
                    install(stage.sublayer, fit)
                reading.behind = torch.cat(list(map(stage.behind, batches, inner)))
            if progress is not None:
                progress(index + 1, len(pruned.stages))
        report = tuple(RefitReport(stage.name, fit.shrinkage, fit.before, fit.after) for stage, fit in fits)
        return Compensated(_with_fits(plan, fits), "ridge", report, len(self.pixels))

    def _narrow(self, graph_module: GraphModule) -> Narrowed:
        return narrow(read_stages(graph_module), self.pixels[:2])

    @torch.no_grad()
    def _streams(self, progress: Report | None = None) -> Iterator[tuple[Stage, Tensor]]:
        """The original's stages, and the stream before each."""
        stages = self._narrowed.stages
        for number, reading in enumerate(streams_at(stages, self.pixels, self._batch), start=1):
            yield reading.stage, reading.stream
            if progress is not None:
                progress(number, len(stages))

    def _missing(
        self,
        pruned: Narrowed,
        stage: Stage,
        batches: Iterable[Tensor],
        inners: Iterable[Tensor],
        goals: Iterable[Tensor],
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches of the surviving inner channels and of what the stream lacks. batches: of the stream before the
        stage. goals: what it should make of them."""
        assert stage.sublayer is not None
        for batch, inner, goal in zip(batches, inners, goals, strict=True):
            got = stage.carried(batch) + stage.sublayer.out(inner)
            # Where only one of the two models still mixes tokens later on, the other carries fewer tokens.
            if got.shape[1] < goal.shape[1]:
                goal = goal[:, pruned.tokens]
            elif got.shape[1] > goal.shape[1]:
                inner, got = inner[:, self._narrowed.tokens], got[:, self._narrowed.tokens]
            yield inner, goal - got


def fit_batches(batches: Iterable[tuple[Tensor, Tensor]]) -> Ridge:
    """The map of the inner channels (n, T, E) to what the stream lacks (n, T, D). At least two batches: every fourth,
    from the second on, chooses the shrinkage."""
    sums: list[Moments | None] = [None, None]
    for number, (inner, missing) in enumerate(batches):
        moments = Moments.of(inner.flatten(0, 1), missing.flatten(0, 1))
        part = int(number % _CHOOSES == 1)
        old = sums[part]
        sums[part] = moments if old is None else old + moments
    fitted, chooses = sums
    assert fitted is not None and chooses is not None
    return ridge(fitted, chooses)


def batch_size(images: int) -> int:
    """For `fit_batches`, of at least two images."""
    return max(1, min(_BATCH, images // _CHOOSES))


def _changed(plan: DeletionPlan, names: list[str], name: str, behind: tuple[Stage, ...]) -> bool:
    """Whether the next stage no longer reads the original's stream: this stage, or one in between, lost units."""
    following = next((stage.name for stage in behind if stage.name in names), None)
    between = names[names.index(name) : None if following is None else names.index(following)] if name in names else []
    return any(deletion.name in between for deletion in plan.deletions)


def install(module: Sublayer, fit: Ridge) -> None:
    """Gives the sublayer the fitted projection."""
    weight = module.out.weight.detach()
    module.out = refitted(module.out, weight if fit.change is None else weight + fit.change.to(weight), fit.shift)


def _with_fits(plan: DeletionPlan, fits: list[tuple[Stage, Ridge]]) -> DeletionPlan:
    """The plan with refits. A fit without a map goes into the constant of what was deleted there, if anything was."""
    refits, shifts = [], {}
    for stage, fit in fits:
        assert stage.sublayer is not None
        if fit.change is None:
            shifts[stage.name] = fit.shift.cpu()
        else:
            refits.append(Refit(stage.name, stage.sublayer.out.weight.detach().cpu(), fit.shift.cpu()))
    deletions = tuple(
        replace(deletion, constant=shifts[deletion.name] + (0 if deletion.constant is None else deletion.constant))
        if deletion.name in shifts
        else deletion
        for deletion in plan.deletions
    )
    return DeletionPlan(deletions, tuple(refits))


@torch.no_grad()
def with_means(original: GraphModule, plan: DeletionPlan, pixels: Tensor) -> DeletionPlan:
    """The plan where each deletion without a constant gets the mean of its units over images and tokens."""
    wanted = {deletion.name: deletion for deletion in plan.deletions if deletion.constant is None}
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
    deletions = (
        replace(deletion, constant=constants.get(deletion.name, deletion.constant)) for deletion in plan.deletions
    )
    return replace(plan, deletions=tuple(deletions))


@torch.no_grad()
def divergence(
    original: GraphModule,
    plan: DeletionPlan,
    pixels: Tensor,
    measure: Divergence = CLASSES,
    merging: MergeBySchedule | None = None,
    expected: Iterable[Tensor] | None = None,
) -> float:
    """Mean D_KL(original ‖ pruned) in nats an image, or that of another kind of answers.

    expected: the original's answers, where they are known, see `answers_to`.
    """
    pruned = rewritten(original, plan, merging)
    pairs = zip(answers_to(original, pixels) if expected is None else expected, answers_to(pruned, pixels), strict=True)
    return sum(float(measure(before, after).sum()) for before, after in pairs) / len(pixels)


def answers_to(graph_module: GraphModule, pixels: Tensor) -> Iterator[Tensor]:
    """Batch by batch."""
    device = next(graph_module.parameters()).device
    for batch in pixels.split(_BATCH):
        with torch.no_grad():
            answers = graph_module(batch.to(device))
        yield answers

"""What the models' answers, the images and the processes allow: losses, labels, mirror images, batches."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from vitfx.graph.divergence import Classes, Dense, Divergence, Labels
from vitfx.graph.metrics import alike
from vitfx.recovery.checks import held_out_logits, share
from vitfx.recovery.data import RecoverData
from vitfx.recovery.settings import RecoverSettings
from vitfx.support.errors import UserError
from vitfx.support.processes import Share

_MIRROR_AGREEMENT = 0.6
"""Mirror images are trained on if the teacher answers at least this share of held-out ones like the images."""
_MIRRORED = 250
"""About so many held-out images are mirrored to find out."""
_LEARNT = ("classes", "labels")
"""Kinds of answers that labels of images say something of."""


def check_loss(settings: RecoverSettings, task: str | None, *, labelled: bool) -> None:
    """Raises UserError where the loss needs labels that images do not have, or that say nothing of such answers.

    task: the kind of answers, None where it is not known yet
    """
    if not settings.objective.needs_labels:
        return
    if task not in (None, *_LEARNT):
        raise UserError(
            f"`loss` {settings.loss} learns from labels, of which answers that are {task} have none: give kd"
        )
    if not labelled:
        raise UserError(f"`loss` {settings.loss} needs labels and the images have none: give `loss` kd")


def check_processes(batch: int, count: int) -> None:
    """Raises UserError where so many processes can't share a batch equally."""
    if batch % count:
        raise UserError(f"`batch` is {batch}, which {count} processes can't share equally: give a multiple")


@torch.no_grad()
def answer_shape(student: GraphModule, teacher: GraphModule, data: RecoverData, measure: Divergence) -> tuple[int, ...]:
    """Of the answer that both models give an image. Raises UserError where they differ, or a label has no logit."""
    device = next(student.parameters()).device
    pixels = data.preprocess.normalise(data.held_out.rows(torch.tensor([0, 0]))).to(device)
    ours, theirs = (tuple(model.eval()(pixels).shape[1:]) for model in (student, teacher))
    if ours != theirs:
        mine, others = ("×".join(map(str, shape)) or "1" for shape in (ours, theirs))
        raise UserError(
            f"the pruned model has {mine} logits and the teacher {others}: give the model that it was pruned from"
        )
    count = math.prod(ours)
    if data.labelled and isinstance(measure, Classes | Labels):
        if data.train.labels.dim() > 1:
            fits_all = data.train.labels.shape[1] == count
        else:
            most = max(count, 2) if isinstance(measure, Labels) else count
            fits_all = int(max(data.train.labels.max(), data.held_out.labels.max())) < most
        if not fits_all:
            raise UserError(
                f"the images have more classes than the model's {count} logits: give the data of its training"
            )
    return ours


def pick_augment(
    teacher: nn.Module,
    data: RecoverData,
    settings: RecoverSettings,
    wanted: Tensor,
    precision: str,
    measure: Divergence,
    processes: Share,
) -> tuple[str, list[str]]:
    """What "auto" stands for here, and why."""
    if settings.augment != "auto":
        return settings.augment, []
    if isinstance(measure, Dense):
        return "none", ["the answers to mirror images would be mirrored as well: they are left out"]
    device = next(teacher.parameters()).device
    every = max(1, len(wanted) // _MIRRORED)
    mirrored = held_out_logits(lambda pixels: teacher(pixels.flip(-1)), data, device, precision, every, share=processes)
    plain = wanted[::every]
    same = share(alike(measure, plain, mirrored))
    # Of values the share that answers to mirror images explain.
    same = max(0.0, 1 - float(measure(plain, mirrored).mean())) if same is None else same
    chosen = "flip" if same >= _MIRROR_AGREEMENT else "none"
    decision = "are trained on as well" if chosen == "flip" else "are left out"
    return chosen, [f"the teacher answers {same:.0%} of mirror images like the images themselves: they {decision}"]

"""A checked command line of `vitfx.recover`, and what follows from it before any work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vitfx.deploy.deployment import Deployment
from vitfx.deploy.precisions import ONNX_RUNTIME
from vitfx.graph.divergence import Divergence
from vitfx.images.image_set import ImageSet
from vitfx.models.checkpoint import LoadedModel
from vitfx.models.chosen import chosen_record
from vitfx.recovery.allowed import check_loss
from vitfx.recovery.settings import RecoverSettings
from vitfx.runs.inputs import Inputs
from vitfx.runs.tasks import blank_answers
from vitfx.support.errors import UserError

_FEWEST, _NUMBERS = 16, 2**27
"""Held-out images at least, and numbers of their answers at most."""


@dataclass(frozen=True)
class RecoverJob:
    """A checked command line, with the models and the data open."""

    inputs: Inputs  #: the pruned model and its data
    teacher: LoadedModel
    evaluation: ImageSet  #: what the models are measured on
    settings: RecoverSettings
    also_baseline: bool  #: whether the unpruned model is retrained as well
    deployment: Deployment  #: how pruned.onnx is made
    device: torch.device
    out: Path
    cache: Path  #: of decoded images
    samples: int  #: training images, at most
    save_seconds: float  #: between two states
    force: bool
    command: str  #: as a user would type it
    teacher_arch: str | None = None  #: the architecture that was given for the teacher
    teacher_weights: str | None = None  #: which of its weights were asked for
    runtime: str = ONNX_RUNTIME  #: what times the models on the CPU

    @property
    def teacher_origin(self) -> dict[str, str]:
        """What the teacher is and how it was opened, as far as it was said."""
        found = {
            "teacher": self.teacher.source,
            "teacher_fingerprint": self.teacher.fingerprint,
            "teacher_arch": self.teacher_arch,
            "teacher_weights": self.teacher_weights,
        }
        return {name: value for name, value in found.items() if value is not None}


def refuse_unlabelled(job: RecoverJob) -> None:
    """Raises UserError for what needs labels, where there are none: before images are decoded."""
    task = None if job.inputs.task is None else job.inputs.task.name
    labelled = job.inputs.splits.calibration.has_labels
    check_loss(job.settings, task, labelled=labelled)
    if job.also_baseline and not labelled:
        raise UserError(
            "`also_baseline` needs labels, because the unpruned model has no teacher: give images in class folders"
        )


def held_out_at_most(job: RecoverJob) -> int:
    """As many as the settings say, or as memory holds the answers of: a number for each pixel is a great many."""
    return min(job.settings.held_out, max(_FEWEST, _NUMBERS // blank_answers(job.inputs.model)[0].numel()))


def settings_record(job: RecoverJob, answers: Divergence, processes: int) -> dict[str, Any]:
    task = {} if answers.kind == "classes" else {"task": answers.kind}
    return {
        "model": job.inputs.model.source,
        "model_fingerprint": job.inputs.model.fingerprint,
        **job.teacher_origin,
        "data": job.inputs.data,
        **({"labels": str(job.inputs.labels)} if job.inputs.labels else {}),
        "preprocess": job.inputs.model.preprocess.to_json(),
        **task,
        **chosen_record(job.inputs.model),
        **job.settings.to_json(),
        "samples": job.samples,
        "also_baseline": job.also_baseline,
        "deployment": job.deployment.to_json(),
        **({} if processes == 1 else {"processes": processes}),
    }

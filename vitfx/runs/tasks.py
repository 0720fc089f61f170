"""What a command knows of the model's answers before it traces the model, and whether labels of classes mean anything
to them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from vitfx.graph.answers import Kind, declared_kind, projection_kind
from vitfx.images.splits import Splits
from vitfx.models.checkpoint import LoadedModel
from vitfx.support.errors import UserError

_CLASSLESS = ("embedding", "values", "dense")


def known_task(options: argparse.Namespace, model: LoadedModel) -> Kind | None:
    """From --task, else from the run of vitfx that made the model. Raises UserError."""
    if (given := getattr(options, "task", None)) is not None:
        return Kind(given, "--task", asked=True)
    recorded = model.provenance.get("settings")
    # A file's settings name a task unless it is `classes`.
    return Kind(recorded.get("task", "classes"), "as its file says") if isinstance(recorded, dict) else None


def is_classless(task: Kind | None, model: LoadedModel, answers: Callable[[], Tensor]) -> bool:
    """Whether the answers are no classes or labels, as far as that shows without a trace. answers: to blank images."""
    kind = task or declared_kind(model.module) or projection_kind(model.module, answers())
    return kind.name in _CLASSLESS if kind is not None else answers().dim() > 2


def blank_answers(model: LoadedModel) -> Tensor:
    """To two blank images."""
    with torch.no_grad():
        answers: Tensor = model.module(torch.zeros(2, model.preprocess.channels, *model.preprocess.size))
    return answers


def without_labels(splits: Splits) -> Splits:
    """For answers that are no classes."""
    calibration, evaluation = (replace(part, labels=None) for part in (splits.calibration, splits.evaluation))
    said = splits.description + ("; its classes are left out" if splits.classes is not None else "")
    return replace(splits, calibration=calibration, evaluation=evaluation, classes=None, description=said)


def refuse_others(kind: Kind, option: str) -> None:
    """Raises UserError for answers that are no classes, which a sweep and rounds can't compare yet."""
    if kind.name != "classes":
        raise UserError(
            f"`{option}` is for models of classes, and this one's answers are {kind.name}: give another goal"
        )

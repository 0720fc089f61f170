"""Loaded models that answer some of their classes alone, and artifacts of such models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from vitfx.graph.chosen_classes import ChosenClasses
from vitfx.images.selection import Selection
from vitfx.models.checkpoint import LoadedModel
from vitfx.models.weights import fingerprint
from vitfx.support.errors import UserError

CHOSEN = "chosen"
"""What the provenance of an artifact calls its `Selection`."""


def chosen_of(model: LoadedModel) -> Selection | None:
    """The classes that it answers of a model that had more; None where there was none. Raises UserError."""
    record = model.provenance.get(CHOSEN)
    return None if record is None else Selection.from_json(record)


def renamed(model: LoadedModel, names: tuple[str, ...]) -> LoadedModel:
    """The model with these names for its logits."""
    chosen = chosen_of(model)
    known = {} if chosen is None else {CHOSEN: chosen.renamed(names).to_json()}
    return replace(model, classes=names, provenance={**model.provenance, **known})


def chosen_record(model: LoadedModel) -> dict[str, Any]:
    """For reports: the classes that it answers, where there were more, and whether the last stands for all others."""
    if (chosen := chosen_of(model)) is None:
        return {}
    return {"classes": list(model.classes or ()), **({"other": True} if chosen.other is not None else {})}


def keep_only(model: LoadedModel, positions: Sequence[int], chosen: Selection) -> LoadedModel:
    """The model with these of its logits alone.

    positions: among the model's logits. chosen: the same classes among those of the model that it came from first.
    Raises UserError for answers that are none of classes.
    """
    blank = torch.zeros(2, model.preprocess.channels, *model.preprocess.size)
    module = ChosenClasses(model.module, tuple(positions), chosen, blank).eval()
    return replace(
        model,
        module=module,
        classes=chosen.names,
        fingerprint=fingerprint({f"classes of {model.fingerprint}": torch.tensor(positions)}),
        provenance={**model.provenance, CHOSEN: chosen.to_json()},
    )


def keep_same(teacher: LoadedModel, chosen: Selection, logits: int) -> LoadedModel:
    """The teacher with the logits that an artifact has of those classes; the teacher itself where it has no others.

    logits: how many the teacher has. Raises UserError where it lacks some.
    """
    known = chosen_of(teacher)
    if known is None and logits == len(chosen.names) < chosen.count:
        return teacher
    places = range(logits) if known is None else known.positions
    count = logits if known is None else known.count
    others = chosen.other is None or known is None or known.other is not None
    if count != chosen.count or not set(chosen.positions) <= set(places) or not others:
        raise UserError(
            f"{teacher.source} does not answer all of the {len(chosen.positions)} classes, of {chosen.count}, that the "
            "pruned model answers: give the model that it was pruned from"
        )
    where = {place: index for index, place in enumerate(places)}
    positions = [where[place] for place in chosen.positions]
    if positions == list(range(len(places))) and len(chosen.names) == logits:
        return teacher
    every = teacher.classes if known is None else known.every
    return keep_only(teacher, positions, replace(chosen, every=every or chosen.every))

"""The last step towards a goal: what is left of the model is trained towards the original, where that helps.

Refits are linear, and know nothing of merged tokens; training makes up for part of what both leave. Who trains is
handed in, since it stands above this wing.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.fx import GraphModule

from vitfx.graph.divergence import Divergence
from vitfx.pruning.iterative_pruner import HeldOutLoss, IterativePruner

Heal = Callable[[GraphModule, GraphModule, Collection[str], Divergence], "Training"]
"""Trains a copy of the artifact towards the original, on images that have none of these names."""


@dataclass(frozen=True)
class Training:
    """What a training ended with."""

    module: GraphModule  #: on the CPU, in eval mode
    sentence: str  #: on how many images, and for how long
    facts: Mapping[str, float] = field(default_factory=dict)  #: the same and its settings, for the circuit's record


@dataclass(frozen=True)
class Healed:
    """An artifact, trained or as it was."""

    module: GraphModule
    loss: HeldOutLoss
    notes: tuple[str, ...] = ()  #: for the user
    record: Mapping[str, Any] | None = None  #: of the training, and what it changed; None where there was none


def healed(
    artifact: GraphModule,
    pruner: IterativePruner,
    original: GraphModule,
    names: Collection[str],
    loss: HeldOutLoss,
    heal: Heal | None,
) -> Healed:
    """The artifact after healing, where the held-out images say that it is nearer to the original.

    names: of the images held out. loss: of the artifact, on them.
    """
    if heal is None:
        return Healed(artifact, loss)
    training = heal(artifact, original, names, pruner.measure)
    if training.module is artifact:
        return Healed(artifact, loss, (training.sentence,))
    after = pruner.loss_of(pruner.answers(training.module))
    gained = after.kl < loss.kl
    verdict = f"from {loss} to {after}"
    verdict += " (the proof is of the model before that)" if gained else ", so the weights stay as they were"
    note = f"{training.sentence}, which takes the images held out {verdict}"
    record = {**training.facts, "before": loss.to_json(), "after": after.to_json(), "kept": gained}
    return Healed(training.module if gained else artifact, after if gained else loss, (note,), record)

"""Gradient flow of a retraining: how large the gradients are that reach each layer, behind each look."""

from __future__ import annotations

from typing import Any

from torch import nn

from vitfx.training.gradient_flow import GradientFlow

_ADAPTED = ".parametrizations.weight.0"
"""What a layer's adapter is called by torch, behind the layer's own name."""


class FlowLog:
    """rows: the state. One for each look, of the step behind it: `images` seen before that step, and `mean` and `max`
    of the absolute gradients of each layer, as `GradientFlow` has them."""

    def __init__(self, student: nn.Module) -> None:
        self._gauge = GradientFlow(student)
        self.rows: list[dict[str, Any]] = []

    def follow(self, looked: int, seen: int) -> None:
        """Takes the gradients as they are, where that was not done since the last look. Where they are not finite, the
        next step's are taken.

        looked: images seen before the last look; seen: before this step.
        """
        if self.rows and self.rows[-1]["images"] >= looked:
            return
        self._gauge.measure()
        if found := self._gauge.take():
            self.rows.append({"images": seen, **found})

    def to_json(self) -> dict[str, Any]:
        return {"layers": [name.removesuffix(_ADAPTED) for name in self._gauge.layers], "steps": self.rows}

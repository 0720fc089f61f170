"""Gradients of a retraining, by layer."""

from __future__ import annotations

from typing import Any

from torch import nn

from vitfx.training.gradient_flow import GradientFlow

_ADAPTED = ".parametrizations.weight.0"
"""What torch appends to a layer's name for its adapter."""


class FlowLog:
    """Gradients by layer, at the first step after each check.

    rows: the state. Each has `images`, seen before that step, and each layer's `mean` and `max` absolute gradient, as
    `GradientFlow` has them.
    """

    def __init__(self, student: nn.Module) -> None:
        self._gauge = GradientFlow(student)
        self.rows: list[dict[str, Any]] = []

    def follow(self, checked: int, seen: int) -> None:
        """Records the gradients, once after each check. Where they are not finite, the next step's are recorded.

        checked: images seen before the last check; seen: before this step.
        """
        if self.rows and self.rows[-1]["images"] >= checked:
            return
        self._gauge.measure()
        if gradients := self._gauge.take():
            self.rows.append({"images": seen, **gradients})

    def to_json(self) -> dict[str, Any]:
        return {"layers": [name.removesuffix(_ADAPTED) for name in self._gauge.layers], "steps": self.rows}

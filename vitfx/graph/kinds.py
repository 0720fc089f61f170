"""The kinds of answers that models give, and the words for how they are compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class KindWords:
    """What answers of a kind are compared by."""

    divergence: str  #: see `vitfx.graph.divergence`
    unit: str  #: of an image's divergence; empty for a plain number
    metric: str | None  #: what is right of labelled images, see `vitfx.graph.metrics`; None where nothing is counted

    @property
    def an_image(self) -> str:
        """The unit of a mean over images."""
        return f"{self.unit} an image".strip()

    def amount(self, figure: str) -> str:
        """A divergence by its name and in its unit."""
        return f"{self.divergence} {figure} {self.unit}".strip()


WORDS = {
    "classes": KindWords("KL", "nats", "top-1"),
    "labels": KindWords("Bernoulli KL", "nats", "micro-F1"),
    "embedding": KindWords("cosine distance", "", None),
    "values": KindWords("relative squared error", "", None),
    "dense": KindWords("relative squared error", "", "pixel accuracy"),
}
KINDS = tuple(WORDS)
"""classes: one of K, by softmax. labels: any of K, by a sigmoid each; one logit is this. embedding: a direction.
values: numbers. dense: numbers for each token or pixel."""


def words_of(settings: Mapping[str, Any]) -> KindWords:
    """Of a circuit's or a report's settings, which name a task unless it is `classes`."""
    return WORDS[settings.get("task", "classes")]

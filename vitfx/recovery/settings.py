"""The settings of a retraining after pruning, with defaults that suit few images and little time."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from vitfx.recovery.distill import LOSSES, Objective
from vitfx.recovery.trainable import ONLY
from vitfx.support.errors import UserError
from vitfx.training.config import PRECISIONS

AUGMENTS = ("auto", "none", "flip", "crop")
SAMPLES, SAVE_SECONDS = 100_000, 120.0
"""Defaults: training images at most, and seconds between saved states."""
_RATES = {"all": 5e-5, "compensating": 3e-4, "norms-and-biases": 1e-3, "neighbours": 5e-5, "lora": 1e-3}
"""The fewer parameters are trained, the further each may move."""
_FAR, _NEAREST = 0.135, 0.1
"""The divergence from the teacher at and above which these are right, and the least factor on them nearer to it.

At .139 half an hour at 5e-5 took a ViT-S's KL to .078, at 2e-5 to .086. At .037 twelve minutes at 1.1e-5 took it to
.028; at .024 fifteen at 2.1e-5 won nothing, and 5e-5 threw it off, to .071. Rates therefore follow the divergence."""
_UNTAUGHT = 0.2
"""Factor on these where no streams are taught: the logits or labels of a few images move weights far that streams hold
in place."""
HIDDEN = 50.0
"""Weight of the streams beside the teacher's logits. What the logits of a few images say about so many weights is
mostly noise, which at first does more harm than good; what their tokens' streams say is not."""


@dataclass(frozen=True)
class RecoverSettings:
    """How to retrain. Raises UserError for values that make no sense."""

    epochs: float | None = None  #: how long: either this or minutes
    minutes: float | None = None  #: of the wall clock, for everything that the retraining does
    loss: str = "kd"  #: this and the next three: see `vitfx.recovery.distill.Objective`
    temperature: float = 2.0
    ce_share: float = 0.5
    hidden: float | None = None  #: None for `HIDDEN` where there is a teacher, else 0
    only: str = "all"  #: this and rank: see `vitfx.recovery.trainable`
    rank: int = 8
    #: none; flip, every image and its mirror image in turn, so that the teacher answers each only once; crop, random
    #: crops and flips; auto, flip where the teacher answers mirror images like the images
    augment: str = "auto"
    batch: int = 32
    #: AdamW's highest rate; None for the default of `only`, lower without streams and near the teacher: see `rate_at`
    lr: float | None = None
    clip: float = 1.0
    checks: int = 10  #: evaluations on held-out images at most, besides the first
    held_out: int = 1000  #: images held out at most, and never more than a tenth
    patience: int = 5  #: stops after so many checks in a row that are better in nothing
    precision: str = "auto"
    seed: int = 0

    def __post_init__(self) -> None:
        if (self.epochs is None) == (self.minutes is None):
            raise UserError("say how long to retrain: give either `epochs` or `minutes`")
        choices = {"loss": LOSSES, "only": ONLY, "augment": AUGMENTS, "precision": PRECISIONS}
        for name, known in choices.items():
            if (value := getattr(self, name)) not in known:
                raise UserError(f"`{name}` is {value!r}: choose one of {', '.join(known)}")
        for name in ("epochs", "minutes", "temperature", "lr", "rank", "batch", "checks", "held_out", "patience"):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise UserError(f"`{name}` is {value:g}: give a number above 0")
        for name in ("hidden", "clip", "seed"):
            value = getattr(self, name)
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise UserError(f"`{name}` is {value:g}: give 0 or more")
        if not 0 <= self.ce_share <= 1:
            raise UserError(f"`ce_share` is {self.ce_share:g}: give a share from 0 to 1")

    @property
    def rate(self) -> float:
        if self.lr is not None:
            return self.lr
        return _RATES[self.only] * (1.0 if self.objective.hidden else _UNTAUGHT)

    def rate_at(self, divergence: float) -> float:
        """The highest rate for a model that is so far from its teacher."""
        if self.lr is not None or not self.objective.hidden:
            return self.rate
        return self.rate * min(max(divergence / _FAR, _NEAREST), 1.0)

    @property
    def objective(self) -> Objective:
        hidden = self.hidden
        if hidden is None:
            hidden = 0.0 if self.loss == "ce" else HIDDEN
        return Objective(self.loss, self.temperature, self.ce_share, hidden)

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "lr": self.rate, "hidden": self.objective.hidden}


_WARM_UP, _FLOOR = 0.05, 0.01


def rate_factor(progress: float) -> float:
    """The learning rate over the highest one: linear warm-up in the first 5 %, then a half cosine to a hundredth.

    progress: 0..1, of the steps or of the time.
    """
    if progress < _WARM_UP:
        return max(progress / _WARM_UP, _FLOOR)
    rest = min((progress - _WARM_UP) / (1 - _WARM_UP), 1.0)
    return _FLOOR + (1 - _FLOOR) * (1 + math.cos(math.pi * rest)) / 2

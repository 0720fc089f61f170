"""Losses that teach a model its task, or another model's answers. B images, K classes or labels, T tokens, D width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from vitfx.graph.divergence import CLASSES, Classes, Divergence, Labels
from vitfx.graph.metrics import loss

LOSSES = ("kd", "ce", "both")


def distillation(answers: Tensor, teacher: Tensor, temperature: float, measure: Divergence = CLASSES) -> Tensor:
    """The mean over images of what `measure` says of the teacher's answers and ours, both (B, K) or (B, …).

    Of classes it is T² · D_KL(softmax(teacher / T) ‖ softmax(answers / T)), in nats, and of labels the same with the
    Bernoulli KL; T² keeps the size of the gradients when T changes (Hinton, Vinyals & Dean 2015, section 2.1). Other
    kinds have no temperature.
    """
    if not isinstance(measure, Classes | Labels):
        return measure(teacher, answers).mean()
    ours, theirs = (measure.logits(values.float()) / temperature for values in (answers, teacher))
    if isinstance(measure, Labels):
        return temperature**2 * replace(measure, probabilities=False)(theirs, ours).mean()
    divergence = F.kl_div(ours.log_softmax(1), theirs.log_softmax(1), reduction="batchmean", log_target=True)
    return temperature**2 * divergence


def by_labels(answers: Tensor, labels: Tensor, measure: Divergence = CLASSES) -> Tensor:
    """The mean over images of `vitfx.graph.metrics.loss`: cross-entropy of classes, binary cross-entropy of labels."""
    if measure == CLASSES:
        return F.cross_entropy(answers.float(), labels)
    losses = loss(measure, answers, labels)
    assert losses is not None, "refused before"
    return losses.mean()


def unexplained(streams: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """The share of the teacher's residual stream that ours misses: Σ (ours − theirs)² / Σ (theirs − mean)², averaged
    over the layers. Streams (B, T, D), one a layer; `mean` is each channel's over images and tokens.
    """
    shares = []
    for ours, theirs in zip(streams, teacher, strict=True):
        wanted = theirs.detach().float()
        spread = (wanted - wanted.mean((0, 1))).square().sum()
        missed = (ours.float() - wanted).square().sum()
        shares.append(missed / spread.clamp_min(torch.finfo(torch.float32).tiny))
    return torch.stack(shares).mean()


@dataclass(frozen=True)
class Objective:
    """What a retraining minimises."""

    kind: str  #: "kd", "ce", or "both", which is (1 − ce_share) · kd + ce_share · ce
    temperature: float  #: of distillation
    ce_share: float
    hidden: float  #: the weight of `unexplained`, 0 for none

    @property
    def needs_labels(self) -> bool:
        return self.kind != "kd"

    @property
    def label_share(self) -> float:
        """The labels' share of the loss, beside the teacher's logits: 0..1."""
        return {"kd": 0.0, "ce": 1.0, "both": self.ce_share}[self.kind]

    @property
    def needs_teacher(self) -> bool:
        return self.kind != "ce" or self.hidden > 0

    def __call__(
        self, answers: Tensor, labels: Tensor, teacher: Tensor | None, measure: Divergence = CLASSES
    ) -> Tensor:
        """The loss without the hidden states' part.

        answers, teacher: (B, K) or (B, …). labels: int64 (B,) or (B, K), ignored by "kd". measure: of their kind.
        """
        if self.kind == "ce":
            return by_labels(answers, labels, measure)
        assert teacher is not None
        taught = distillation(answers, teacher, self.temperature, measure)
        if self.kind == "kd":
            return taught
        return (1 - self.ce_share) * taught + self.ce_share * by_labels(answers, labels, measure)

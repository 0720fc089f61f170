"""Losses that teach a model its task, or another model's answers. B images, K classes, T tokens, D width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

LOSSES = ("kd", "ce", "both")


def distillation(logits: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T² times the mean over images of D_KL(softmax(teacher / T) ‖ softmax(logits / T)), in nats; both (B, K).

    T² keeps the size of the gradients when T changes (Hinton, Vinyals & Dean 2015, section 2.1).
    """
    ours, theirs = (values.float() / temperature for values in (logits, teacher))
    divergence = F.kl_div(ours.log_softmax(1), theirs.log_softmax(1), reduction="batchmean", log_target=True)
    return temperature**2 * divergence


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

    def __call__(self, logits: Tensor, labels: Tensor, teacher: Tensor | None) -> Tensor:
        """The loss without the hidden states' part. logits, teacher: (B, K). labels: int64 (B,), ignored by "kd"."""
        if self.kind == "ce":
            return F.cross_entropy(logits.float(), labels)
        assert teacher is not None
        taught = distillation(logits, teacher, self.temperature)
        if self.kind == "kd":
            return taught
        return (1 - self.ce_share) * taught + self.ce_share * F.cross_entropy(logits.float(), labels)

"""How a model that is being retrained does on held-out images, and which of these checks is the best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from vitfx.graph.divergence import kl_divergence
from vitfx.recovery.data import RecoverData
from vitfx.training.precision import autocast

_BATCH = 64


@dataclass(frozen=True)
class Check:
    """One evaluation on the held-out images."""

    progress: float  #: 0..1
    images: int  #: seen in training so far
    seconds: float  #: of retraining so far
    loss: float | None  #: cross-entropy in nats, None without labels
    accuracy: float | None  #: 0..1, None without labels
    kl: float  #: mean D_KL(teacher ‖ student) in nats
    agreement: float  #: share of images with the teacher's answer
    lr: float
    train_loss: float | None  #: mean over the steps since the last check

    def missed(self, label_share: float) -> float:
        """Nats an image that the student misses, without temperature: KL from the teacher, loss by labels."""
        if not label_share:
            return self.kl
        assert self.loss is not None
        return (1 - label_share) * self.kl + label_share * self.loss

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        near = f"KL from the teacher {self.kl:.4f}, agreement {self.agreement:.2%}"
        return near if self.accuracy is None else f"held-out loss {self.loss:.4f}, top-1 {self.accuracy:.2%}, {near}"


def best_of(checks: Sequence[Check], label_share: float) -> int:
    """The position of the check that misses least of what is taught, the first among equals. A check with fewer
    held-out images right than the first one is never chosen.

    Which of several checks has the most images right is mostly luck: at 75 % of 1,000 images the standard error is 1.4
    points. Nats are less coarse.
    """
    before = checks[0].accuracy
    no_worse = [
        place
        for place, check in enumerate(checks)
        if before is None or check.accuracy is None or check.accuracy >= before
    ]
    return min(no_worse, key=lambda place: checks[place].missed(label_share))


def is_stale(checks: list[Check], patience: int) -> bool:
    """Whether none of the last `patience` checks was better than all before in accuracy, loss or divergence."""
    before, last = checks[:-patience], checks[-patience:]
    if not before:
        return False
    early, late = ([max(column) for column in zip(*map(_figures, some), strict=True)] for some in (before, last))
    return all(new <= old for new, old in zip(late, early, strict=True))


def _figures(check: Check) -> tuple[float, ...]:
    """More is better."""
    labelled = () if check.accuracy is None or check.loss is None else (check.accuracy, -check.loss)
    return (*labelled, -check.kl)


@torch.no_grad()
def held_out_logits(
    model: Callable[[Tensor], Tensor], data: RecoverData, device: torch.device, precision: str, every: int = 1
) -> Tensor:
    """(N, K), float64 on the CPU, of the model in eval mode. every: 1 for all images, 2 for every second one, …"""
    batches = []
    for indices in torch.arange(0, len(data.held_out), every).split(_BATCH):
        with autocast(device, precision):
            logits = model(data.preprocess.normalise(data.held_out.rows(indices)).to(device))
        batches.append(logits.double().cpu())
    return torch.cat(batches)


def scores(logits: Tensor, teacher: Tensor, data: RecoverData) -> dict[str, float | None]:
    """loss, accuracy, kl and agreement of a `Check`, from student's and teacher's `held_out_logits`."""
    answers = logits.argmax(1)
    labels = data.held_out.labels
    return {
        "loss": float(cross_entropy(logits, labels)) if data.labelled else None,
        "accuracy": float((answers == labels).double().mean()) if data.labelled else None,
        "kl": float(kl_divergence(teacher, logits).mean()),
        "agreement": float((answers == teacher.argmax(1)).double().mean()),
    }

"""How a model that is being retrained does on held-out images, and which of these checks is the best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from vitfx.graph.divergence import CLASSES, Divergence
from vitfx.graph.kinds import WORDS
from vitfx.graph.metrics import alike, loss, right
from vitfx.recovery.data import RecoverData
from vitfx.support.processes import Alone, Share
from vitfx.training.precision import autocast

_BATCH = 64


@dataclass(frozen=True)
class Check:
    """One evaluation on the held-out images."""

    progress: float  #: 0..1
    images: int  #: seen in training so far
    seconds: float  #: of retraining so far
    loss: float | None  #: see `vitfx.graph.metrics.loss`, None without labels
    accuracy: float | None  #: top-1 or micro-F1, 0..1, None without labels
    kl: float  #: mean D_KL(teacher ‖ student) in nats, or the divergence of another kind of answers
    agreement: float | None  #: share of images with the teacher's answer, see `vitfx.graph.metrics.alike`
    lr: float
    train_loss: float | None  #: mean over the steps since the last check
    task: str = "classes"  #: the kind of answers

    def missed(self, label_share: float) -> float:
        """Nats an image that the student misses, without temperature: KL from the teacher, loss by labels."""
        if not label_share:
            return self.kl
        assert self.loss is not None
        return (1 - label_share) * self.kl + label_share * self.loss

    def to_json(self) -> dict[str, Any]:
        record = asdict(self)
        return {name: value for name, value in record.items() if (name, value) != ("task", "classes")}

    def __str__(self) -> str:
        words = WORDS[self.task]
        near = f"{words.divergence} from the teacher {self.kl:.4f}"
        near += "" if self.agreement is None else f", agreement {self.agreement:.2%}"
        right = "" if self.accuracy is None else f"{words.metric} {self.accuracy:.2%}, "
        return f"{right}{near}" if self.loss is None else f"held-out loss {self.loss:.4f}, {right}{near}"


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
    model: Callable[[Tensor], Tensor],
    data: RecoverData,
    device: torch.device,
    precision: str,
    every: int = 1,
    share: Share | None = None,
) -> Tensor:
    """Answers (N, K) or (N, …), float64 on the CPU, of the model in eval mode.

    every: 1 for all images, 2 for every second one, …
    share: each process asks the model for its part of them, or for all where there are fewer than processes
    """
    share = share or Alone()
    places = torch.arange(0, len(data.held_out), every)
    shared = 1 < share.world <= len(places)
    own = torch.arange(share.rank, len(places), share.world) if shared else torch.arange(len(places))
    batches = []
    for indices in places[own].split(_BATCH):
        with autocast(device, precision):
            logits = model(data.preprocess.normalise(data.held_out.rows(indices)).to(device))
        batches.append(logits.double().cpu())
    answers = torch.cat(batches)
    if not shared:
        return answers
    whole = answers.new_zeros(len(places), *answers.shape[1:]).index_copy(0, own, answers)
    # In parts: a sum holds as many copies as there are processes.
    return torch.cat([share.sum(part) for part in whole.split(_BATCH)])


def scores(
    answers: Tensor, teacher: Tensor, data: RecoverData, measure: Divergence = CLASSES
) -> dict[str, float | None]:
    """loss, accuracy, kl and agreement of a `Check`, from student's and teacher's `held_out_logits`."""
    labels = data.held_out.labels
    losses = loss(measure, answers, labels) if data.labelled else None
    return {
        "loss": None if losses is None else float(losses.mean()),
        "accuracy": share(right(measure, answers, labels)) if data.labelled else None,
        "kl": float(measure(teacher, answers).mean()),
        "agreement": share(alike(measure, teacher, answers)),
    }


def share(parts: Tensor | None) -> float | None:
    """Over all images. parts: (N, 2), see `vitfx.graph.metrics`."""
    if parts is None:
        return None
    part, of = parts.sum(dim=0).tolist()
    return float(part / of) if of else None

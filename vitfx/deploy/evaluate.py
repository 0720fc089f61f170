"""Models side by side on the evaluation images: loss, accuracy, divergence from the first, time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from vitfx.graph.divergence import CLASSES, Divergence, Labels
from vitfx.graph.metrics import alike, loss, mean_average_precision, right, targets
from vitfx.images.image_set import Images, ImageSet
from vitfx.support.timing import time_interleaved


@dataclass(frozen=True)
class Scores:
    """One model on the evaluation images."""

    images: int
    skipped: int  #: corrupt images that were left out
    loss: float | None  #: mean cross-entropy in nats, see `vitfx.graph.metrics.loss`; None without labels
    accuracy: float | None  #: top-1, 0 to 1, see `vitfx.graph.metrics.right`; None without labels
    kl: float  #: mean D_KL(first ‖ this) in nats, or the divergence of another kind of answers
    agreement: float | None  #: share of images with the first model's top-1, see `vitfx.graph.metrics.alike`
    seconds: float  #: spent in the model alone, host to host
    precision: float | None = None  #: mAP of labels, 0 to 1
    #: accuracy on the images of the chosen classes and on those of all others, where these have a logit
    by_choice: tuple[float | None, float | None] | None = None


@dataclass
class _Tally:
    call: Callable[[Tensor], Tensor]
    measure: Divergence
    other: int | None = None  #: the label of all classes that were not chosen
    logits: Tensor = field(init=False)
    losses: list[float] = field(default_factory=list)  #: sums over a batch
    right: Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.float64))  #: sums of its two parts
    right_others: Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.float64))  #: of these the others'
    alike: Tensor = field(default_factory=lambda: torch.zeros(2, dtype=torch.float64))  #: likewise
    kl: float = 0.0
    scored: list[tuple[Tensor, Tensor]] = field(default_factory=list)  #: answers and labels, for mAP
    milliseconds: float = 0.0

    def step(self, pixels: Tensor) -> None:
        self.logits = self.call(pixels)

    def count(self, first: Tensor, labels: Tensor | None) -> None:
        self.kl += float(self.measure(first, self.logits).sum())
        if (same := alike(self.measure, first, self.logits)) is not None:
            self.alike += same.sum(dim=0)
        if labels is None:
            return
        if (losses := loss(self.measure, self.logits, labels)) is not None:
            self.losses.append(float(losses.sum()))
        if (correct := right(self.measure, self.logits, labels)) is not None:
            self.right += correct.sum(dim=0)
            if self.other is not None:
                self.right_others += correct[labels == self.other].sum(dim=0)
        if isinstance(self.measure, Labels):
            scores = self.logits.reshape(len(labels), -1)
            self.scored.append((scores, targets(labels, scores.shape[1])))

    @property
    def precision(self) -> float | None:
        if not self.scored:
            return None
        scores, labels = (torch.cat(parts) for parts in zip(*self.scored, strict=True))
        return mean_average_precision(scores, labels)


def evaluate(
    models: Mapping[str, Callable[[Tensor], Tensor]],
    images: ImageSet,
    *,
    batch: int,
    divergence: Divergence = CLASSES,
    other: int | None = None,
    synchronize: Callable[[], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Scores]:
    """Every model on every image, taking turns batch by batch; reading images does not count as time.

    models: pixels (B, C, H, W) -> answers (B, …), on the CPU; the others are compared with the first.
    divergence: of the models' kind of answers. The nearest neighbour of an embedding is looked for in its batch.
    other: the label of all classes that were not chosen, where these have one.
    """
    tallies = {name: _Tally(call, divergence, other) for name, call in models.items()}
    seen = skipped = 0
    for turn, group in enumerate(images.batches(batch)):
        if turn == 0:
            for tally in tallies.values():
                tally.step(group.pixels)
        _take_turns(tallies, group, turn, synchronize)
        seen += len(group)
        skipped += group.skipped
        if progress is not None:
            progress(seen + skipped, len(images))
    return {name: _scores(tally, seen, skipped) for name, tally in tallies.items()}


def _take_turns(tallies: dict[str, _Tally], images: Images, turn: int, synchronize: Callable[[], None] | None) -> None:
    names = list(tallies)
    start = turn % len(names)
    runs = {name: partial(tallies[name].step, images.pixels) for name in names[start:] + names[:start]}
    timings = time_interleaved(runs, warmup=0, rounds=1, synchronize=synchronize)
    first = tallies[names[0]].logits
    for name, tally in tallies.items():
        tally.milliseconds += sum(timings[name].samples_ms)
        tally.count(first, images.labels)


def _scores(tally: _Tally, seen: int, skipped: int) -> Scores:
    return Scores(
        images=seen,
        skipped=skipped,
        loss=sum(tally.losses) / seen if tally.losses else None,
        accuracy=_share(tally.right),
        kl=tally.kl / seen,
        agreement=_share(tally.alike),
        seconds=tally.milliseconds / 1e3,
        precision=tally.precision,
        by_choice=None if tally.other is None else _by_choice(tally),
    )


def _by_choice(tally: _Tally) -> tuple[float | None, float | None]:
    return _share(tally.right - tally.right_others), _share(tally.right_others)


def _share(sums: Tensor) -> float | None:
    part, of = sums.tolist()
    return part / of if of else None

"""Models side by side on the evaluation images: loss, accuracy, divergence from the first, time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from torch import Tensor
from torch.nn.functional import cross_entropy

from vitfx.graph.divergence import kl_divergence
from vitfx.images.image_set import Images, ImageSet
from vitfx.support.timing import time_interleaved


@dataclass(frozen=True)
class Scores:
    """One model on the evaluation images."""

    images: int
    skipped: int  #: corrupt images that were left out
    loss: float | None  #: mean cross-entropy in nats; None where the images have no labels
    accuracy: float | None  #: top-1, 0 to 1; None where the images have no labels
    kl: float  #: mean D_KL(first ‖ this) in nats
    agreement: float  #: share of images with the first model's top-1
    seconds: float  #: spent in the model alone, host to host


@dataclass
class _Tally:
    call: Callable[[Tensor], Tensor]
    logits: Tensor = field(init=False)
    loss: float = 0.0
    correct: int = 0
    kl: float = 0.0
    agreeing: int = 0
    milliseconds: float = 0.0

    def step(self, pixels: Tensor) -> None:
        self.logits = self.call(pixels)

    def count(self, first: Tensor, labels: Tensor | None) -> None:
        self.kl += float(kl_divergence(first, self.logits).sum())
        self.agreeing += int((self.logits.argmax(1) == first.argmax(1)).sum())
        if labels is not None:
            self.loss += float(cross_entropy(self.logits.double(), labels, reduction="sum"))
            self.correct += int((self.logits.argmax(1) == labels).sum())


def evaluate(
    models: Mapping[str, Callable[[Tensor], Tensor]],
    images: ImageSet,
    *,
    batch: int,
    synchronize: Callable[[], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Scores]:
    """Every model on every image, taking turns batch by batch; reading images does not count as time.

    models: pixels (B, C, H, W) -> logits (B, K), on the CPU; the others are compared with the first.
    """
    tallies = {name: _Tally(call) for name, call in models.items()}
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
    return {name: _scores(tally, seen, skipped, images.has_labels) for name, tally in tallies.items()}


def _take_turns(tallies: dict[str, _Tally], images: Images, turn: int, synchronize: Callable[[], None] | None) -> None:
    names = list(tallies)
    start = turn % len(names)
    runs = {name: partial(tallies[name].step, images.pixels) for name in names[start:] + names[:start]}
    timings = time_interleaved(runs, warmup=0, rounds=1, synchronize=synchronize)
    first = tallies[names[0]].logits
    for name, tally in tallies.items():
        tally.milliseconds += sum(timings[name].samples_ms)
        tally.count(first, images.labels)


def _scores(tally: _Tally, seen: int, skipped: int, labelled: bool) -> Scores:
    return Scores(
        images=seen,
        skipped=skipped,
        loss=tally.loss / seen if labelled else None,
        accuracy=tally.correct / seen if labelled else None,
        kl=tally.kl / seen,
        agreement=tally.agreeing / seen,
        seconds=tally.milliseconds / 1e3,
    )

"""Which classes a model confuses, on all images of a set: the matrix, accuracy by class, and their files."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypedDict

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from vitfx.images.pixel_cache import Pixels
from vitfx.images.preprocess import Preprocess
from vitfx.support.modes import evaluating
from vitfx.support.processes import Share
from vitfx.training.precision import autocast

if TYPE_CHECKING:
    from matplotlib.figure import Figure


ClassRow = TypedDict(
    "ClassRow", {"class": str, "images": int, "accuracy": float | None, "taken_for": str | None, "times": int}
)
"""A class, its images, the share answered correctly, and what it is most often taken for, how many times."""


@dataclass(frozen=True, eq=False)
class Confusion:
    """The answers of a model to a set of images."""

    counts: Tensor  #: int64 (K, K), row the true class, column the answer
    loss: float  #: mean cross-entropy in nats

    @property
    def images(self) -> int:
        return int(self.counts.sum())

    @property
    def accuracy(self) -> float:
        """Top-1, 0..1."""
        return int(self.counts.trace()) / self.images

    def by_class(self) -> list[float | None]:
        """Each class's share of correct answers, None for a class without images."""
        correct, images = self.counts.diagonal().tolist(), self.counts.sum(1).tolist()
        return [hits / count if count else None for hits, count in zip(correct, images, strict=True)]

    def rows(self, classes: Sequence[str]) -> list[ClassRow]:
        wrong = self.counts.clone().fill_diagonal_(0)
        times, taken_for = wrong.max(1)
        return [
            {
                "class": name,
                "images": int(self.counts[index].sum()),
                "accuracy": accuracy,
                "taken_for": classes[int(taken_for[index])] if times[index] else None,
                "times": int(times[index]),
            }
            for index, (name, accuracy) in enumerate(zip(classes, self.by_class(), strict=True))
        ]


@torch.no_grad()
def confuse(
    model: nn.Module,
    pixels: Pixels,
    preprocess: Preprocess,
    classes: int,
    *,
    batch: int,
    precision: str,
    share: Share,
    goes_on: Callable[[int, int], bool] = lambda done, total: True,
) -> Confusion | None:
    """Evaluates `model` on its own device, on all images, which are shared out among the processes.

    goes_on: called with (images done, images in all) of this process; where it returns False, so does this None.
    """
    device = next(model.parameters()).device
    counts = torch.zeros(classes * classes, dtype=torch.int64)
    loss = torch.zeros(1, dtype=torch.float64)
    own = torch.arange(share.rank, len(pixels), share.world)
    done = 0
    with evaluating(model):
        for indices in torch.split(own, batch):
            labels = pixels.labels[indices]
            with autocast(device, precision):
                logits = model(preprocess.normalise(pixels.rows(indices).to(device)))
            logits = logits.double().cpu()
            counts += torch.bincount(labels * classes + logits.argmax(1), minlength=classes * classes)
            loss += cross_entropy(logits, labels, reduction="sum")
            done += len(indices)
            if not goes_on(done, len(own)):
                return None
    total = share.sum(counts).reshape(classes, classes)
    return Confusion(total, float(share.sum(loss)) / len(pixels))


def matrix_csv(confusion: Confusion, classes: Sequence[str]) -> str:
    """A row for each true class, a column for each answer."""
    rows = zip(classes, confusion.counts.tolist(), strict=True)
    return _csv([["true \\ answered", *classes], *([name, *counts] for name, counts in rows)])


def classes_csv(confusion: Confusion, classes: Sequence[str]) -> str:
    """Each class with its images, its accuracy, and what it is most often taken for."""
    header = ["class", "images", "accuracy", "most often taken for", "times"]
    return _csv([header, *(list(row.values()) for row in confusion.rows(classes))])


def _csv(rows: list[list[Any]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def to_json(confusion: Confusion, classes: Sequence[str]) -> dict[str, Any]:
    return {
        "images": confusion.images,
        "loss": confusion.loss,
        "accuracy": confusion.accuracy,
        "classes": confusion.rows(classes),
    }


def draw_confusion(confusion: Confusion, classes: Sequence[str]) -> Figure:
    """The matrix as a heat map, each row as shares of its class, beside the accuracies by class in rising order.

    Colours follow the square root of the share: among many classes each confusion is rare.
    """
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure

    shares = (confusion.counts / confusion.counts.sum(1, keepdim=True).clamp(min=1)).numpy()
    figure = Figure(figsize=(13, 6.5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.25, 1])
    image = left.imshow(shares, cmap="viridis", norm=PowerNorm(0.5, 0, 1), interpolation="nearest")
    figure.colorbar(image, ax=left, label="share of the true class's images", shrink=0.8)
    left.set(xlabel="answered class", ylabel="true class")
    left.grid(False)
    if len(classes) <= 30:
        left.set_xticks(range(len(classes)), classes, rotation=90 if max(map(len, classes)) > 2 else 0)
        left.set_yticks(range(len(classes)), classes)
        if len(classes) <= 12:
            for row, column in confusion.counts.nonzero().tolist():
                colour = "black" if shares[row, column] > 0.4 else "white"
                left.text(column, row, int(confusion.counts[row, column]), ha="center", va="center", color=colour)
    left.set_title(f"{confusion.images:,} images, top-1 {confusion.accuracy:.2%}")
    ranked = sorted(
        (share, name) for share, name in zip(confusion.by_class(), classes, strict=True) if share is not None
    )
    right.barh(
        range(len(ranked)),
        [100 * share for share, _ in ranked],
        height=0.9 if len(ranked) <= 40 else 1.0,
        color="#3b6fb6",
    )
    right.axvline(100 * confusion.accuracy, color="#b33", linewidth=1, label="all images")
    if len(ranked) <= 40:
        right.set_yticks(range(len(ranked)), [name for _, name in ranked])
    else:
        right.set_yticks([])
    right.set(xlabel="accuracy, %", xlim=(0, 100), title=_extremes(ranked))
    right.legend(loc="lower right")
    return figure


def _extremes(ranked: Sequence[tuple[float, str]]) -> str:
    (low, worst), (high, best) = ranked[0], ranked[-1]
    return f"worst {worst} ({low:.0%}), best {best} ({high:.0%})"

"""Which classes a model takes for which, on all images of a set: the matrix, accuracy by class, and their files."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

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


@dataclass(frozen=True, eq=False)
class Confusion:
    """counts: int64 (K, K), row the true class, column the answer. loss: mean cross-entropy in nats."""

    counts: Tensor
    loss: float

    @property
    def images(self) -> int:
        return int(self.counts.sum())

    @property
    def accuracy(self) -> float:
        """Top-1, 0..1."""
        return int(self.counts.trace()) / self.images

    def by_class(self) -> list[float | None]:
        """Each class's share of right answers, None for a class without images."""
        right, all_ = self.counts.diagonal().tolist(), self.counts.sum(1).tolist()
        return [one / count if count else None for one, count in zip(right, all_, strict=True)]


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
    """`model`, on its own device and in eval mode while this runs, on all images, shared among the processes.

    goes_on: told how many of this process's images are done; None is returned where it says no.
    """
    device = next(model.parameters()).device
    counts = torch.zeros(classes * classes, dtype=torch.int64)
    loss = torch.zeros(1, dtype=torch.float64)
    mine = torch.arange(share.rank, len(pixels), share.world)
    done = 0
    with evaluating(model):
        for indices in mine.split(batch):
            labels = pixels.labels[indices]
            with autocast(device, precision):
                logits = model(preprocess(pixels.rows(indices).to(device)))
            logits = logits.double().cpu()
            counts += torch.bincount(labels * classes + logits.argmax(1), minlength=classes * classes)
            loss += cross_entropy(logits, labels, reduction="sum")
            done += len(indices)
            if not goes_on(done, len(mine)):
                return None
    total = share.sum(counts).reshape(classes, classes)
    return Confusion(total, float(share.sum(loss)) / len(pixels))


def matrix_csv(confusion: Confusion, classes: Sequence[str]) -> str:
    """A row for each true class, a column for each answer."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["true \\ answered", *classes])
    writer.writerows([name, *row] for name, row in zip(classes, confusion.counts.tolist(), strict=True))
    return text.getvalue()


def classes_csv(confusion: Confusion, classes: Sequence[str]) -> str:
    """Each class with its images, its accuracy, and what it is most often taken for."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["class", "images", "accuracy", "most often taken for", "times"])
    for row in _class_rows(confusion, classes):
        writer.writerow(["" if value is None else value for value in row.values()])
    return text.getvalue()


def to_json(confusion: Confusion, classes: Sequence[str]) -> dict[str, Any]:
    return {
        "images": confusion.images,
        "loss": confusion.loss,
        "accuracy": confusion.accuracy,
        "classes": _class_rows(confusion, classes),
    }


def _class_rows(confusion: Confusion, classes: Sequence[str]) -> list[dict[str, Any]]:
    wrong = confusion.counts.clone().fill_diagonal_(0)
    most, where = wrong.max(1)
    counts = confusion.counts.sum(1).tolist()
    return [
        {
            "class": name,
            "images": counts[index],
            "accuracy": share,
            "taken_for": classes[int(where[index])] if most[index] else None,
            "times": int(most[index]),
        }
        for index, (name, share) in enumerate(zip(classes, confusion.by_class(), strict=True))
    ]


def draw_confusion(confusion: Confusion, classes: Sequence[str]) -> Figure:
    """The matrix as a heat map, rows as shares of their class, beside accuracies by class, lowest first.

    Colours go by the root of the share: among many classes, what is taken for what is rare.
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

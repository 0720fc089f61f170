"""What answers of each kind get right, and where two models answer alike. Shapes: N images, K classes or labels.

A share is the quotient of two sums over images, so that batches and processes can be added up: shares come as the
image's part of both, float64 (N, 2).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from vitfx.graph.divergence import Classes, Dense, Divergence, Embedding, Labels, Values


def right(measure: Divergence, answers: Tensor, labels: Tensor) -> Tensor | None:
    """classes: top-1. labels: micro-F1, 2·TP/(2·TP + FP + FN) over all images and labels (van Rijsbergen 1979,
    Information Retrieval, chapter 7). dense, with an integer label for each pixel or token: the share of these that are
    right. None for other kinds and other labels."""
    if isinstance(measure, Classes):
        return _of_one(answers.argmax(dim=-1) == labels)
    if isinstance(measure, Labels):
        given = _decided(measure, answers)
        wanted = targets(labels, given.shape[1]).bool()
        both = (wanted & given).sum(dim=-1)
        return torch.stack([2 * both, wanted.sum(dim=-1) + given.sum(dim=-1)], dim=1).double()
    if isinstance(measure, Dense) and _by_place(labels):
        same = (answers.argmax(dim=_channels(answers)) == labels).flatten(1)
        return torch.stack([same.sum(dim=1), torch.full_like(same.sum(dim=1), same.shape[1])], dim=1).double()
    return None


def alike(measure: Divergence, answers: Tensor, other: Tensor) -> Tensor | None:
    """classes: the same top-1. labels: the share of labels that are decided alike. embedding: the same nearest
    neighbour among these very images. None for other kinds, and for the embedding of a single image."""
    if isinstance(measure, Classes):
        return _of_one(answers.argmax(dim=-1) == other.argmax(dim=-1))
    if isinstance(measure, Labels):
        return _of_one((_decided(measure, answers) == _decided(measure, other)).double().mean(dim=-1))
    if isinstance(measure, Embedding) and len(answers) > 1:
        return _of_one(_neighbours(answers) == _neighbours(other))
    return None


def loss(measure: Divergence, answers: Tensor, labels: Tensor) -> Tensor | None:
    """What training for labels minimises, float64 (N,): cross-entropy of classes, mean binary cross-entropy of labels,
    mean squared error of values, and of `dense` cross-entropy or, with labels that are numbers, squared error by pixel
    or token. None for embeddings."""
    exact = answers.double()
    if isinstance(measure, Classes):
        return F.nll_loss(measure.logits(exact).log_softmax(-1), labels, reduction="none")
    if isinstance(measure, Labels):
        logits = measure.logits(exact).reshape(len(exact), -1)
        wanted = targets(labels, logits.shape[1]).to(exact)
        return F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").mean(dim=-1)
    if isinstance(measure, Dense) and _by_place(labels):
        by_class = exact.movedim(_channels(answers), 1)
        return F.cross_entropy(by_class, labels, reduction="none").flatten(1).mean(dim=1)
    if isinstance(measure, Values) and labels.is_floating_point():
        squares = (exact - labels.to(exact).reshape(exact.shape)).square()
        return squares.reshape(len(squares), -1).mean(dim=1)
    return None


def mean_average_precision(scores: Tensor, labels: Tensor) -> float | None:
    """mAP: the mean over labels that some image has of Σ (R_i − R_{i−1}) P_i, precision P and recall R at each score,
    falling, equal scores together (Everingham et al. 2010, doi:10.1007/s11263-009-0275-4, without interpolation, as
    scikit-learn's `average_precision_score`). None where no image has any label.

    scores: (N, K). labels: 0 or 1, (N, K).
    """
    precisions = [
        _average_precision(scores[:, label], labels[:, label].bool())
        for label in range(scores.shape[1])
        if bool(labels[:, label].any())
    ]
    return sum(precisions) / len(precisions) if precisions else None


def targets(labels: Tensor, count: int) -> Tensor:
    """Which labels an image has, 0 or 1 (N, count): as they are, or from the number of its one class (N,); of a single
    label that number says yes or no."""
    if labels.dim() == 2:
        return labels
    return labels[:, None] if count == 1 else F.one_hot(labels, count)


def _average_precision(scores: Tensor, positive: Tensor) -> float:
    order = torch.argsort(scores, descending=True, stable=True)
    scores, found = scores[order], positive[order].double().cumsum(dim=0)
    last = torch.cat([scores[1:] != scores[:-1], torch.ones(1, dtype=torch.bool, device=scores.device)])
    ranks = torch.arange(1, len(scores) + 1, device=scores.device, dtype=torch.float64)
    precision, recall = (found / ranks)[last], (found / found[-1])[last]
    return float((precision * torch.diff(recall, prepend=recall.new_zeros(1))).sum())


def _decided(measure: Labels, answers: Tensor) -> Tensor:
    return answers.reshape(len(answers), -1) > (0.5 if measure.probabilities else 0)


def _neighbours(answers: Tensor) -> Tensor:
    unit = F.normalize(answers.double(), dim=-1)
    return (unit @ unit.T).fill_diagonal_(-2).argmax(dim=-1)


def _of_one(share: Tensor) -> Tensor:
    return torch.stack([share.double(), torch.ones(len(share), dtype=torch.float64, device=share.device)], dim=1)


def _by_place(labels: Tensor) -> bool:
    """Whether they are a class for each token or pixel, and not one for the image."""
    return labels.dim() > 1 and not labels.is_floating_point()


def _channels(answers: Tensor) -> int:
    """The axis of a token's or pixel's own values."""
    return -1 if answers.dim() == 3 else 1

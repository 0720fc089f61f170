"""How far one model's answers are from another's, for every kind of answer.

Each kind has a divergence D(z, z') of answers z of the whole model and z' of another: not negative, zero where they are
equal, and smooth. What attributions need is its slope ∂D/∂z', and its quadratic form at the answer z' itself, H = L Lᵀ
with D(z', z' + δ) ≈ ½ δᵀHδ, as *directions* v = L s with random signs s, for which E[v vᵀ] = H (Hutchinson 1990).

Shapes: N images; answers are (N, K), a single label or value also (N,), of `dense` (N, T, D) by token or (N, C, H, W)
by pixel.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from vitfx.graph.kinds import WORDS

_LEAST = torch.finfo(torch.float32).tiny
"""Stands in for a probability of zero, so that its logarithm is finite."""


def kl_divergence(logits: Tensor, other: Tensor) -> Tensor:
    """D_KL(softmax(logits) ‖ softmax(other)) for each image, float64 (N,), in nats. Only rounding makes it negative."""
    log_p, log_q = F.log_softmax(logits.double(), dim=-1), F.log_softmax(other.double(), dim=-1)
    return torch.sum(log_p.exp() * (log_p - log_q), dim=-1)


class Divergence(ABC):
    """Of one kind of answer."""

    kind: ClassVar[str]  #: one of `vitfx.graph.kinds.KINDS`

    @abstractmethod
    def __call__(self, answers: Tensor, other: Tensor) -> Tensor:
        """D(answers, other) for each image, float64 (N,)."""

    @abstractmethod
    def directions(self, answers: Tensor, signs: Tensor) -> Tensor:
        """L s at these answers, float64 like `signs`: ±1 of the answers' shape, or several of these (count, N, …)."""

    def slope(self, answers: Tensor, other: Tensor) -> Tensor:
        """∂D/∂other, float64 of its shape."""
        with torch.enable_grad():
            tracked = other.detach().double().requires_grad_()
            (slope,) = torch.autograd.grad(self(answers.detach(), tracked).sum(), tracked)
        return slope

    def score(self, answers: Tensor, signs: Tensor) -> Tensor:
        """A number whose gradient by the answers is L s. signs: of the answers' shape."""
        return (self.directions(answers.detach(), signs).to(answers) * answers).sum()

    def certainty(self, answers: Tensor) -> Tensor:
        """The least certain answers have the least of it: float64 (N,), all 0 where a kind does not tell."""
        return torch.zeros(len(answers), dtype=torch.float64, device=answers.device)

    @property
    def looks(self) -> str:
        """What the answers are and how they are compared, for the first lines of a run."""
        return f"{_LOOKS[self.kind]}, compared by {WORDS[self.kind].divergence}"


_LOOKS = {
    "classes": "logits of classes",
    "labels": "logits of labels, a sigmoid each",
    "embedding": "an embedding",
    "values": "values",
    "dense": "values of each token or pixel",
}


@dataclass(frozen=True)
class Classes(Divergence):
    """D_KL(softmax(z) ‖ softmax(z')) (Kullback and Leibler 1951); H = diag(p) − p pᵀ, the Fisher information (Amari
    1998). Answers that are probabilities stand for their logarithms, of which softmax gives them back.

    If a class y were drawn from p for a direction, v = e_y − p, then for confident predictions one image in a hundred
    would carry all the information. With v = √p∘s − p(√p · s) every image carries some: the standard deviation of
    (v · g)² is at most √2 times its mean.
    """

    probabilities: bool = False  #: whether the answers are these, and not logits
    kind = "classes"

    def __call__(self, answers: Tensor, other: Tensor) -> Tensor:
        return kl_divergence(self.logits(answers), self.logits(other))

    def directions(self, answers: Tensor, signs: Tensor) -> Tensor:
        roots = F.softmax(self.logits(answers.detach().double()), dim=-1).sqrt()
        signed = roots * signs.to(roots)
        by_logits = signed - roots.square() * signed.sum(dim=-1, keepdim=True)
        return by_logits / answers.double().clamp_min(_LEAST) if self.probabilities else by_logits

    def slope(self, answers: Tensor, other: Tensor) -> Tensor:
        by_logits = F.softmax(self.logits(other.double()), dim=-1) - F.softmax(self.logits(answers.double()), dim=-1)
        return by_logits / other.double().clamp_min(_LEAST) if self.probabilities else by_logits

    def score(self, answers: Tensor, signs: Tensor) -> Tensor:
        log_p = self.logits(answers).log_softmax(-1)
        return (log_p.detach().exp().sqrt() * signs * log_p).sum()

    def certainty(self, answers: Tensor) -> Tensor:
        """The entropy, negative."""
        log_p = self.logits(answers.double()).log_softmax(-1)
        return (log_p.exp() * log_p).sum(-1)

    def logits(self, answers: Tensor) -> Tensor:
        """Of probabilities, their logarithms."""
        return answers.clamp_min(_LEAST).log() if self.probabilities else answers

    @property
    def looks(self) -> str:
        return super().looks.replace("logits", "probabilities") if self.probabilities else super().looks


CLASSES = Classes()
"""Logits of classes, the commonest kind."""


@dataclass(frozen=True)
class Labels(Divergence):
    """The mean over K labels of the KL divergence between Bernoulli distributions,
    p log(p/q) + (1 − p) log((1 − p)/(1 − q)), p = σ(z), q = σ(z'); H = diag(p(1 − p))/K (Amari 1998)."""

    probabilities: bool = False  #: whether the answers are σ's values, and not logits
    kind = "labels"

    def __call__(self, answers: Tensor, other: Tensor) -> Tensor:
        ours, theirs = (self.logits(each.double()) for each in (answers, other))
        yes, no = (F.logsigmoid(sign * ours) - F.logsigmoid(sign * theirs) for sign in (1, -1))
        return _rows(ours.sigmoid() * yes + (-ours).sigmoid() * no).mean(dim=1)

    def directions(self, answers: Tensor, signs: Tensor) -> Tensor:
        logits = self.logits(answers.detach().double())
        spread = logits.sigmoid() * (-logits).sigmoid()
        by_logits = (spread / logits[0].numel()).sqrt() * signs.to(logits)
        return by_logits / spread if self.probabilities else by_logits

    def certainty(self, answers: Tensor) -> Tensor:
        """The mean entropy, negative."""
        logits = self.logits(answers.double())
        entropies = logits.sigmoid() * F.logsigmoid(logits) + (-logits).sigmoid() * F.logsigmoid(-logits)
        return _rows(entropies).mean(dim=1)

    def logits(self, answers: Tensor) -> Tensor:
        """Probabilities of 0 and 1 become logits that are large, not infinite."""
        return answers.logit(eps=1e-7) if self.probabilities else answers

    @property
    def looks(self) -> str:
        return super().looks.replace("logits", "probabilities") if self.probabilities else super().looks


@dataclass(frozen=True)
class Embedding(Divergence):
    """The cosine distance 1 − cos(z, z'), half the squared distance of unit vectors; H = (I − u uᵀ)/|z'|², u = z'/|z'|.
    It counts directions alone, as retrieval does (Salton and McGill 1983, Introduction to Modern Information Retrieval,
    section 4.4)."""

    kind = "embedding"

    def __call__(self, answers: Tensor, other: Tensor) -> Tensor:
        ours, theirs = (F.normalize(each.double(), dim=-1) for each in (answers, other))
        # Not 1 − cos, which rounds the distance of near neighbours away.
        distances: Tensor = (ours - theirs).square().sum(dim=-1) / 2
        return distances

    def directions(self, answers: Tensor, signs: Tensor) -> Tensor:
        values = answers.detach().double()
        unit = F.normalize(values, dim=-1)
        length: Tensor = values.norm(dim=-1, keepdim=True).clamp_min(_LEAST)
        flips = signs.to(unit)
        return (flips - unit * (unit * flips).sum(dim=-1, keepdim=True)) / length


@dataclass(frozen=True)
class Values(Divergence):
    """The relative squared error |z' − z|²/s, where s is what predicting the mean answer would cost on average,
    s = mean over images of |z − z̄|² (Breiman et al. 1984, Classification and Regression Trees, section 8.3; 1 − R² of
    z' as a prediction of z). A model that answers the same to every image is at 1. H = 2I/s."""

    scale: float = 1.0  #: s
    kind = "values"

    def __call__(self, answers: Tensor, other: Tensor) -> Tensor:
        squares = _rows(answers.double() - other.double()).square()
        relative: Tensor = squares.sum(dim=1) / self.scale
        return relative

    def directions(self, answers: Tensor, signs: Tensor) -> Tensor:
        return signs.double() * math.sqrt(2 / self.scale)


@dataclass(frozen=True)
class Dense(Values):
    """The relative squared error of each token or pixel, and the mean of these: |z' − z|²/s over all of an image's,
    where s is what predicting the mean of all tokens or pixels of all images would cost."""

    kind = "dense"


def make_divergence(kind: str, answers: Tensor) -> Divergence:
    """The divergence for answers of this kind.

    answers: the whole model's, to some images, which say whether they are probabilities, and how much values differ.
    """
    if kind == "classes":
        return Classes(are_distributions(answers))
    if kind == "labels":
        return Labels(are_shares(answers))
    if kind == "embedding":
        return Embedding()
    own = answers.detach().double()
    if kind == "values":
        return Values(_scale(_rows(own)))
    # The mean is of each channel: the last axis by token, the second by pixel.
    channels = -1 if own.dim() == 3 else 1
    by_place = own.movedim(channels, -1)
    return Dense(_scale(by_place.flatten(0, -2)) * (by_place[0, ..., 0].numel()))


def _rows(answers: Tensor) -> Tensor:
    """A row for each image, also where an image's answer is one number without an axis."""
    return answers.reshape(len(answers), -1)


def _scale(rows: Tensor) -> float:
    """What a row's squared distance from their mean is on average; of rows that are all equal, their squared length."""
    spread = float((rows - rows.mean(dim=0)).square().sum(dim=1).mean())
    length = float(rows.square().sum(dim=1).mean())
    return spread if spread > 1e-12 * length else length or 1.0


def are_shares(answers: Tensor) -> bool:
    """Whether all answers are from 0 to 1."""
    return bool(((answers >= 0) & (answers <= 1)).all())


def are_distributions(answers: Tensor) -> bool:
    """Whether each row (N, K) is one of probabilities: none negative, and a sum of 1."""
    return (
        answers.dim() == 2
        and answers.shape[1] > 1
        and are_shares(answers)
        and bool(((answers.sum(dim=-1) - 1).abs() < 1e-3).all())
    )

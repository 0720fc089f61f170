"""Ridge regression from streamed statistics: which linear map of what is left makes up for what is missing.

Minimises Σ |R − H·ΔWᵀ − Δb|² + λ·n·|ΔW|² (Hoerl and Kennard 1970) by the normal equations in float64, so that the map
shrinks towards no change. The shift Δb is not penalised. λ is chosen on rows that the fit has not seen.

Shapes: n rows, E inputs, D outputs.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SHRINKAGES = (30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 1e-4)
"""λ divided by the mean variance of the inputs, the strongest first."""

_BLOCK = 384
"""Columns multiplied at a time."""


@dataclass(frozen=True)
class Moments:
    """Sums over rows, float64."""

    gram: Tensor  #: (E + 1, E + 1), of (h, 1) with itself
    cross: Tensor  #: (E + 1, D), of (h, 1) with r
    square: Tensor  #: of |r|²

    @staticmethod
    def of(inputs: Tensor, missing: Tensor) -> Moments:
        """Of one batch, (n, E) and (n, D). Products are computed in the batch's own type, which is fast and, over a few
        thousand rows, accurate enough; they are added up in float64."""
        ones = inputs.new_ones(len(inputs), 1)
        rows = torch.cat([inputs, ones], dim=1)
        return Moments(gram(rows), (rows.T @ missing).double(), missing.square().sum().double())

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.gram + other.gram, self.cross + other.cross, self.square + other.square)

    @property
    def rows(self) -> float:
        return float(self.gram[-1, -1])

    def error(self, change: Tensor, shift: Tensor) -> float:
        """Mean over these rows of |r − ΔW·h − Δb|²."""
        both = torch.cat([change.T, shift[None]])
        total = (both * (self.gram @ both)).sum() - 2 * (both * self.cross).sum() + self.square
        return float(total) / self.rows


@dataclass(frozen=True)
class Ridge:
    """A fit, and what it is worth on held-out rows."""

    change: Tensor | None  #: ΔW, float64 (D, E); None where no map helps on held-out rows
    shift: Tensor  #: Δb, float64 (D,)
    shrinkage: float | None  #: one of `SHRINKAGES`; None without a map
    before: float  #: mean |r|² of a held-out row without the change
    after: float  #: the same with it


def ridge(fitted: Moments, held_out: Moments) -> Ridge:
    """The fit to both together, with the shrinkage that was best on `held_out` when fitted to `fitted`.

    Shrinkages are tried from the strongest on, as long as the error falls.
    """
    width, outputs = len(fitted.gram) - 1, fitted.cross.shape[1]
    none = fitted.gram.new_zeros(outputs, width)
    best, least = None, held_out.error(none, _shift(fitted, none))
    for shrinkage in SHRINKAGES:
        change = _solve(fitted, shrinkage)
        error = held_out.error(change, _shift(fitted, change))
        if not error < least:
            break
        best, least = shrinkage, error
    both = fitted + held_out
    before = float(held_out.square) / held_out.rows
    if best is None:
        return Ridge(None, _shift(both, none), None, before, least)
    change = _solve(both, best)
    return Ridge(change, _shift(both, change), best, before, least)


def gram(rows: Tensor) -> Tensor:
    """rowsᵀ · rows of (n, E), as float64. Of wide rows, only blocks on and above the diagonal are multiplied."""
    width = rows.shape[1]
    products = rows.new_empty(width, width, dtype=torch.float64)
    for start in range(0, width, _BLOCK):
        stop = min(start + _BLOCK, width)
        products[:stop, start:stop] = rows[:, :stop].T @ rows[:, start:stop]
        products[start:stop, :start] = products[:start, start:stop].T
    return products


def _solve(moments: Moments, shrinkage: float) -> Tensor:
    """ΔW, (D, E); zero where the inputs vary by less than rounding, so that the equations have no solution."""
    count = moments.rows
    mean = moments.gram[:-1, -1:] / count
    covariance = moments.gram[:-1, :-1] / count - mean @ mean.T
    cross = moments.cross[:-1] / count - mean @ (moments.cross[-1:] / count)
    covariance.diagonal().add_(shrinkage * covariance.diagonal().mean())
    factor, failed = torch.linalg.cholesky_ex(covariance)
    return torch.zeros_like(cross.T) if bool(failed) else torch.cholesky_solve(cross, factor).T


def _shift(moments: Moments, change: Tensor) -> Tensor:
    """Δb, (D,): the mean of what the map leaves over."""
    return (moments.cross[-1] - change @ moments.gram[:-1, -1]) / moments.rows

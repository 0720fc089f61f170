"""The order in which a sublayer's units are deleted when the survivors are refitted after each deletion.

After the refit, a deletion costs only what the survivors can't predict of the unit: by the Schur complement, the
inverse of the unit's entry in the inverse covariance of the survivors (the denominator of the optimal brain surgeon,
Hassibi and Stork 1993, here of activations). One of two redundant units costs nothing while the other survives. The
inverse is updated after each deletion, so the second is then charged in full.

    cost(u | survivors) = F(u) · |W_u R_u W_uᵀ| / |W_u Σ_u W_uᵀ|

F is the Fisher information of the unit's gate, Σ_u its covariance and R_u the part of it that the survivors leave
unexplained, both seen through the unit's columns W_u of the projection. For a neuron the fraction is R_u / Σ_u."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SHRINKAGE = 1e-2
"""Of the covariance towards the identity times its mean variance: a map that the refit would shrink away is not
counted on here either."""
_SHARE = 1 / 128
"""Share of the units deleted between two updates of the inverse."""
_COMPACT = 3 / 4
"""Once less than this share of the inverse belongs to survivors, the rest is dropped: updates cost its square."""


@dataclass(frozen=True)
class RemovalOrder:
    """The order for one sublayer."""

    units: tuple[int, ...]  #: the first to go comes first
    costs: Tensor  #: nats an image of deleting the first 0, 1, … of them, float64 (units + 1,), never falling


@torch.no_grad()
def removal_order(fisher: Tensor, covariance: Tensor, weight: Tensor) -> RemovalOrder:
    """The order for a sublayer and its costs.

    fisher: nats an image of each unit alone, float64 (units,)
    covariance: of the inner channels, float64 (E, E), a unit's channels side by side
    weight: the projection's (D, E)
    """
    units, width = len(fisher), len(covariance)
    channels = width // units
    scale = float(covariance.diagonal().mean()) or 1.0
    damped = covariance + SHRINKAGE * scale * torch.eye(width, dtype=torch.float64)
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    metric = _own_metric(weight.cpu(), channels)
    whole = _through(metric, _blocks(damped, channels))
    alive = torch.ones(units, dtype=torch.bool)
    members = torch.arange(units)  # whose channels the inverse has
    order: list[int] = []
    costs: list[float] = [0.0]
    step = max(1, int(units * _SHARE))
    while len(order) < units:
        left = _through(metric[members], torch.linalg.inv(_blocks(inverse, channels)))
        cost = torch.where(alive[members], fisher[members] * (left / whole[members]).clamp(0, 1), torch.inf)
        going = cost.topk(min(step, units - len(order)), largest=False).indices
        for unit, each in zip(members[going].tolist(), cost[going].tolist(), strict=True):
            order.append(unit)
            costs.append(costs[-1] + each)
        alive[members[going]] = False
        _leave_out(inverse, _channels_of(going, channels))
        if int(alive.sum()) < _COMPACT * len(members):
            staying = alive[members].nonzero().flatten()
            rows = _channels_of(staying, channels)
            inverse, members = inverse[rows][:, rows], members[staying]
    return RemovalOrder(tuple(order), torch.tensor(costs, dtype=torch.float64))


def _own_metric(weight: Tensor, channels: int) -> Tensor:
    """W_uᵀ W_u of each unit's columns of the projection, float64 (units, channels, channels)."""
    columns = weight.double().T.unflatten(0, (-1, channels))
    own: Tensor = columns @ columns.mT
    return own


def _channels_of(units: Tensor, channels: int) -> Tensor:
    return (units[:, None] * channels + torch.arange(channels)).flatten()


def _blocks(matrix: Tensor, channels: int) -> Tensor:
    """(E, E) -> each unit's own block, (units, channels, channels)."""
    units = len(matrix) // channels
    index = torch.arange(units)
    return matrix.view(units, channels, units, channels)[index, :, index, :]


def _through(metric: Tensor, covariances: Tensor) -> Tensor:
    """tr(W_u Σ_u W_uᵀ) of each unit: the variance of what it writes."""
    return (metric * covariances).sum(dim=(1, 2)).clamp_min(torch.finfo(torch.float64).tiny)


def _leave_out(inverse: Tensor, channels: Tensor) -> None:
    """In place: the inverse covariance without these channels, which become independent of all others."""
    rows = inverse[channels]
    inverse.addmm_(rows.T, torch.linalg.solve(rows[:, channels], rows), alpha=-1)
    # The update left rounding there, which no solver inverts.
    inverse[channels[:, None], channels] = torch.eye(len(channels), dtype=inverse.dtype)

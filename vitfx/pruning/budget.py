"""How many units each sublayer keeps in a model of a given price, so that the predicted loss is least."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from vitfx.pruning.cost_model import Price
from vitfx.pruning.removal_order import RemovalOrder


@dataclass(frozen=True)
class _Move:
    """Deleting more of a sublayer, from `start` units to `stop`."""

    slope: float  #: nats for each unit of price saved
    name: str
    start: int
    stop: int


def select(
    orders: Mapping[str, RemovalOrder], price: Price, most: float, multiples: Mapping[str, int] | None = None
) -> dict[str, int] | None:
    """How many units to delete from each sublayer, in its removal order, for a total price of `most` or less.

    multiples: by sublayer, what the number of kept units must be a multiple of; sublayers not named keep any number.

    None where even a model without any sublayer costs more. By Lagrangian relaxation (Everett 1963): in each sublayer
    only the deletions on the lower convex hull of (saved, cost) are worth making, and across all sublayers those with
    the least cost for what they save come first. A hull has long edges where single units save little and all of them
    together save much, as when a norm goes with the last unit.
    """
    multiples = multiples or {}
    saved = {name: _saved(price, name) for name in orders}
    hulls = [_moves(name, saved[name], order.costs, multiples.get(name, 1)) for name, order in orders.items()]
    moves = sorted((move for hull in hulls for move in hull), key=lambda move: move.slope)
    counts = dict.fromkeys(orders, 0)
    total = price.whole
    for move in moves:
        if total <= most:
            break
        gains = saved[move.name] - saved[move.name][move.start]
        # The last move stops as soon as the price is met.
        places = torch.arange(move.stop, move.start, -multiples.get(move.name, 1)).flip(0)
        enough = places[total - gains[places] <= most]
        stop = int(enough[0]) if len(enough) else move.stop
        counts[move.name] = stop
        total -= float(gains[stop])
    return counts if total <= most else None


def _saved(price: Price, name: str) -> Tensor:
    """What deleting 0, 1, … units saves, (units + 1,)."""
    cost = price.sublayers[name]
    return cost[-1] - cost.flip(0)


def _moves(name: str, saved: Tensor, costs: Tensor, multiple: int) -> list[_Move]:
    """The lower convex hull of the deletions that keep a multiple of units: its edges, by rising slope."""
    points = list(zip(saved.tolist(), costs.tolist(), strict=True))
    units, hull = len(points) - 1, [0]
    for index in range(1, len(points)):
        if (units - index) % multiple or points[index][0] <= points[hull[-1]][0]:
            continue
        while len(hull) > 1 and _slope(points, hull[-2], index) <= _slope(points, hull[-2], hull[-1]):
            hull.pop()
        hull.append(index)
    return [_Move(_slope(points, a, b), name, a, b) for a, b in pairwise(hull)]


def _slope(points: list[tuple[float, float]], a: int, b: int) -> float:
    return (points[b][1] - points[a][1]) / (points[b][0] - points[a][0])

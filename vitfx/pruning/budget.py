"""How many units of each sublayer a model of a given price keeps, so that what it loses is least."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from vitfx.pruning.cost_model import Price
from vitfx.pruning.removal_order import Elimination


@dataclass(frozen=True)
class _Move:
    """Deleting more of a sublayer, from `start` units to `stop`; slope: nats by what that saves."""

    slope: float
    name: str
    start: int
    stop: int


def select(
    paths: Mapping[str, Elimination], price: Price, most: float, multiples: Mapping[str, int] | None = None
) -> dict[str, int] | None:
    """The number of units to delete of each sublayer, along its elimination, for a total price of `most` or less; None
    where not even a model without any sublayer is that cheap. multiples: by sublayer, of what the number of units that
    a smaller one keeps must be a multiple; any number where it is not named.

    By Lagrange's relaxation (Everett 1963): of each sublayer only the deletions on the lower convex hull of (saved,
    cost) are worth making, and over all sublayers those that cost least by what they save come first. A hull has long
    edges where single units save little and all of them together much, as when a norm goes with the last unit."""
    multiples = multiples or {}
    saved = {name: _saved(price, name) for name in paths}
    hulls = [_moves(name, saved[name], path.costs, multiples.get(name, 1)) for name, path in paths.items()]
    moves = sorted((move for hull in hulls for move in hull), key=lambda move: move.slope)
    counts = dict.fromkeys(paths, 0)
    total = price.whole
    for move in moves:
        if total <= most:
            break
        gains = saved[move.name] - saved[move.name][move.start]
        # The move that crosses the line goes no further than it must.
        places = torch.arange(move.stop, move.start, -multiples.get(move.name, 1)).flip(0)
        enough = places[total - gains[places] <= most]
        stop = int(enough[0]) if len(enough) else move.stop
        counts[move.name] = stop
        total -= float(gains[stop])
    return counts if total <= most else None


def _saved(price: Price, name: str) -> Tensor:
    """By the number of deleted units, (units + 1,)."""
    cost = price.sublayers[name]
    return cost[-1] - cost.flip(0)


def _moves(name: str, saved: Tensor, costs: Tensor, multiple: int) -> list[_Move]:
    """The edges of the lower convex hull, of rising slope, of the deletions that leave a multiple of units."""
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

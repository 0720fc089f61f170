"""The size of a model's images, read from its positions: their number alone does not say height and width."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt

import torch

from vitfx.support.errors import UserError

Size = tuple[int, int]
# From so many patches on a table of positions shows its grid; the next best grid must be clearly worse.
_FEWEST = 16
_CLEARLY = 0.15


@dataclass(frozen=True)
class ImageSize:
    """What is known of it."""

    size: Size | None  #: (height, width) in pixels, None where the weights do not show it
    note: str | None = None  #: how it was inferred, where neither the user nor the library says it
    question: str | None = None  #: what to ask the user, where only the number of patches speaks for it


UNKNOWN = ImageSize(None)


def infer_size(
    weights: Mapping[str, torch.Tensor],
    positions: str,
    patches: str,
    *,
    prefix: int,
    usual: Size | None,
    given: Size | None,
    source: str,
    at_most: bool = False,
    square: bool = False,
) -> ImageSize:
    """The size that the user gave or the architecture has, where positions fit it; else that which positions show.

    positions, patches: the names of the position embedding, (1, N, D), and of the patches' convolution, (D, C, h, w).
    prefix: how many positions are not patches'.
    usual: the architecture's own size.
    at_most: whether a given size is passed over where it does not fit, as one to interpolate to.
    square: whether the library's model takes square images alone.

    Raises UserError for a given size that does not fit, and where nothing speaks for any size.
    """
    if not {positions, patches} <= weights.keys() or (weights[positions].ndim, weights[patches].ndim) != (3, 4):
        return ImageSize(None if at_most else given)
    high, wide = weights[patches].shape[-2:]
    table = weights[positions][0, prefix:]
    count = len(table)
    known = f"{source} has positions for {count} patches of {high}×{wide} pixels"
    fitting = None if given is None else (given[0] // high) * (given[1] // wide)
    if square and given is not None and given[0] != given[1] and not at_most:
        raise UserError(f"{source} is of a model that takes square images, not {shown(given)}: give one side")
    if given is not None and fitting == count and (not square or given[0] == given[1]):
        return ImageSize(given)
    if given is not None and not at_most:
        raise UserError(
            f"{known}, and images of {shown(given)} have {fitting}: give the `image_size` that it was trained at"
        )
    if usual is not None and (usual[0] // high) * (usual[1] // wide) == count:
        return ImageSize(usual)
    if not square and (grid := grid_of(table)) is not None:
        size = (grid[0] * high, grid[1] * wide)
        return ImageSize(
            size, f"images of {shown(size)} pixels, as the positions in {source} are a grid of {shown(grid)}"
        )
    side = isqrt(count)
    size = (side * high, side * wide)
    if not count or side * side != count:
        several = "which can be several heights and widths: give `image_size` HEIGHTxWIDTH"
        none = "and its model takes square images: give the weights of such a one"
        raise UserError(f"{known}, {none if square else several}")
    if square:
        return ImageSize(size, f"images of {shown(size)} pixels, as {source} has positions for {count} patches")
    return ImageSize(
        size,
        f"images of {shown(size)} pixels, if the {count} patches in {source} make a square",
        f"{known}, which are images of {shown(size)} or of another height and width: "
        f"give `image_size` {shown(size).replace('×', 'x')} or what it was trained at",
    )


def grid_of(table: torch.Tensor) -> Size | None:
    """(rows, columns) of a table of positions (N, D) in which neighbours are alike, as in trained and sine-cosine
    ones; None where it does not show them."""
    count = len(table)
    if count < _FEWEST or not table.is_floating_point():
        return None
    centred = torch.nn.functional.normalize(table.double() - table.double().mean(0), dim=1)
    alike = [1.0, *(float((centred[:-step] * centred[step:]).sum(1).mean()) for step in range(1, count // 2 + 2))]
    # A patch resembles the one below it, a row on, more than those beside that one.
    peaks = {
        width: alike[width] - max(alike[width - 1], alike[width + 1])
        for width in range(3, count // 2 + 1)
        if count % width == 0
    }
    rises = {width: alike[width] - min(alike[2 : width + 1]) for width in peaks}
    clear = [width for width in peaks if peaks[width] > 0 and rises[width] > _CLEARLY]
    width = max(clear, key=lambda width: alike[width], default=None)
    return None if width is None else (count // width, width)


def shown(size: Size) -> str:
    return f"{size[0]}×{size[1]}"

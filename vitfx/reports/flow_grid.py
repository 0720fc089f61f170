"""Gradient flow on the page: layers upwards, the course of a retraining from left to right."""

from __future__ import annotations

import math

from markupsafe import Markup

from vitfx.reports.charts import digits, short
from vitfx.reports.records import Flow
from vitfx.support.svg import drawing, element

_LABELS, _WIDTH, _TOP, _BOTTOM = 118, 420, 6, 20
_HEIGHT, _LEAST, _MOST = 440, 4.0, 16.0
_LINE = 12
"""What a line of text needs of the height."""
_PALEST = 0.06


def flow_grid(flow: Flow, name: str) -> Markup:
    """Nothing where no gradient was above zero. name: of the model."""
    layers, steps = flow["layers"], flow["steps"]
    known = [
        (value, layer, step["images"])
        for step in steps
        for layer, value in zip(layers, step["mean"], strict=True)
        if value > 0
    ]
    if not known:
        return Markup("")
    least, most = min(known), max(known)
    high = min(max(_HEIGHT / len(layers), _LEAST), _MOST)
    wide = (_WIDTH - _LABELS) / len(steps)
    parts = _names(layers, high)
    for column, step in enumerate(steps):
        for row, (layer, value) in enumerate(zip(reversed(layers), reversed(step["mean"]), strict=True)):
            title = element("title", f"{layer}, {step['images']:,} images: {value:.3g}")
            opacity = f"{_shade(value, least[0], most[0]):.3f}"
            place = {"x": _LABELS + column * wide, "y": _TOP + row * high, "width": wide, "height": high}
            parts.append(element("rect", title, class_="heat", **place, fill_opacity=opacity))
    bottom = _TOP + high * len(layers)
    for at, anchor, label in (
        (_LABELS, "start", digits(steps[0]["images"])),
        ((_LABELS + _WIDTH) / 2, "middle", "images seen"),
        (_WIDTH, "end", digits(steps[-1]["images"])),
    ):
        parts.append(element("text", label, x=at, y=bottom + 14, text_anchor=anchor, class_="soft"))
    ends = [f"{value:.3g} ({layer}, {images:,} images)" for value, layer, images in (least, most)]
    alt = f"{name}: mean absolute gradient by layer over the images seen, from {ends[0]} to {ends[1]}."
    return drawing(_WIDTH, bottom + _BOTTOM, alt, parts)


def _names(layers: list[str], high: float) -> list[Markup]:
    """Of as many layers as there is room for, the last on top."""
    every = math.ceil(_LINE / high)
    return [
        element("text", short(layer, 19), x=0, y=_TOP + (row + 0.5) * high + 4, class_="soft")
        for row, layer in enumerate(reversed(layers))
        if row % every == 0
    ]


def _shade(value: float, least: float, most: float) -> float:
    """0 for none at all."""
    if value <= 0:
        return 0.0
    if least == most:
        return 1.0
    return _PALEST + (1 - _PALEST) * math.log(value / least) / math.log(most / least)

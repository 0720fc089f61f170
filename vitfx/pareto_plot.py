"""The picture of a Pareto front: what is lost over the share of the plain export's time that is left, with the
knee."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from vitfx.runs.sweep_points import Point, knee

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LINE, _MARK = "#3b6fb6", "#c8553d"


def draw_front(points: Sequence[Point], title: str) -> Figure:
    """KL over time, and top-1 over time where the images have labels. points: two or more, by rising speed-up."""
    from matplotlib.figure import Figure

    labelled = points[0].accuracy is not None
    figure = Figure(figsize=(10.5 if labelled else 6, 4.2), layout="constrained")
    panels = figure.subplots(1, 2 if labelled else 1, squeeze=False)[0]
    bend = knee(points)
    _panel(panels[0], points, [one.kl for one in points], bend)
    panels[0].set(ylabel="D_KL from the original, nats an image", title=title)
    ends = points[0], points[-1]
    panels[0].plot([one.share for one in ends], [one.kl for one in ends], "--", color="#999", linewidth=0.8)
    if labelled:
        _panel(panels[1], points, [100 * (one.accuracy or 0.0) for one in points], bend)
        whole = 100 * (points[0].plain_accuracy or 0.0)
        panels[1].axhline(whole, color="#999", linewidth=0.8, linestyle=":", label=f"original, {whole:.2f} %")
        panels[1].set(ylabel="top-1, %", title=f"{points[0].images} evaluation images")
    for panel in panels:
        panel.legend()
    return figure


def _panel(panel: Axes, points: Sequence[Point], values: Sequence[float], bend: Point | None) -> None:
    panel.plot([one.share for one in points], values, color=_LINE, marker="o", markersize=4, label="pruned")
    for one, value in zip(points, values, strict=True):
        panel.annotate(
            f"{one.speedup:.2f}×", (one.share, value), xytext=(4, 4), textcoords="offset points", fontsize="small"
        )
        if one is bend:
            panel.plot(one.share, value, "*", color=_MARK, markersize=14, label=f"knee, {one.speedup:.2f}×")
    panel.set(xlabel="share of the plain export's time")

"""Pictures of a training: its curves, and how large the gradients of each layer are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from vitfx.training.state import Epoch, Log

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_SMOOTHED = 200
"""The most points of a curve over steps; each is the mean of its steps."""


def draw_curves(log: Log, epoch_steps: int) -> Figure:
    """Losses by epoch, accuracy, learning rate."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.8), layout="constrained")
    losses, accuracy, rate = figure.subplots(1, 3)
    ends = [epoch.number for epoch in log.epochs]
    places, means = _thinned(log.losses, epoch_steps)
    losses.plot(places, means, color="#9bb8dd", linewidth=1, label="training, by step")
    middles = [number - 0.5 for number in ends]
    losses.plot(middles, [epoch.train_loss for epoch in log.epochs], color="#3b6fb6", label="training, by epoch")
    losses.plot(ends, [epoch.loss for epoch in log.epochs], color="#c8553d", label="validation")
    losses.set(xlabel="epoch", ylabel="cross-entropy, nats", title="loss")
    losses.legend()
    accuracy.plot(ends, [100 * epoch.accuracy for epoch in log.epochs], color="#c8553d", marker=".")
    if log.best is not None:
        best = 100 * log.best.accuracy
        accuracy.plot(log.best.number, best, "*", color="black", markersize=10)
        accuracy.set_title(f"validation top-1, best {best:.2f} % after epoch {log.best.number}")
    accuracy.set(xlabel="epoch", ylabel="%")
    rate.plot(ends, [epoch.lr for epoch in log.epochs], color="#555", marker=".")
    rate.set(xlabel="epoch", title="learning rate at the epoch's end")
    return figure


def _thinned(losses: Sequence[float], epoch_steps: int) -> tuple[list[float], list[float]]:
    """The place of each point, in epochs, and the mean loss of its steps."""
    parts = [part for part in np.array_split(np.arange(len(losses)), _SMOOTHED) if len(part)]
    values = np.asarray(losses)
    return [float(part.mean() + 0.5) / epoch_steps for part in parts], [float(values[part].mean()) for part in parts]


def draw_flow(log: Log, layers: Sequence[str]) -> Figure:
    """Mean absolute gradient by layer: a heat map over epochs, and lines for the first, middle and last one."""
    from matplotlib.figure import Figure

    epochs = [epoch for epoch in log.epochs if epoch.flow]
    figure = Figure(figsize=(max(9.0, 0.16 * len(layers) + 2), 9.5), layout="constrained")
    lines, heat = figure.subplots(2, 1)
    _draw_lines(lines, [epochs[index] for index in sorted({0, len(epochs) // 2, len(epochs) - 1})], len(layers))
    means = np.array([epoch.flow["mean"] for epoch in epochs])
    logs = np.log10(np.maximum(means, np.finfo(float).tiny))
    floor = logs[means > 0].min() if (means > 0).any() else 0
    image = heat.imshow(np.maximum(logs, floor), aspect="auto", cmap="viridis", interpolation="nearest")
    figure.colorbar(image, ax=heat, label="log10 of the mean |gradient|")
    heat.set_yticks(range(len(epochs)) if len(epochs) <= 20 else [0, len(epochs) - 1])
    heat.set_yticklabels([epochs[int(tick)].number for tick in heat.get_yticks()])
    heat.set(ylabel="epoch")
    heat.grid(False)
    heat.set_xticks(range(len(layers)), layers, rotation=90, fontsize=6)
    return figure


def _draw_lines(axes: Axes, epochs: Sequence[Epoch], layers: int) -> None:
    for epoch, colour in zip(epochs, ("#c9a227", "#3a9188", "#46327e"), strict=False):
        axes.semilogy(epoch.flow["mean"], color=colour, label=f"epoch {epoch.number}, mean")
        axes.semilogy(
            epoch.flow["max"], color=colour, linewidth=0.7, linestyle=":", label=f"epoch {epoch.number}, greatest"
        )
    axes.set(xlim=(-0.5, layers - 0.5), ylabel="|gradient|", title="gradient flow: layers from the image to the logits")
    axes.set_xticks(range(layers), [""] * layers)
    # matplotlib's own formatter writes formulas, which are off.
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.legend(ncols=3, fontsize=7)

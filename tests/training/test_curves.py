"""vitfx.training.curves: what is drawn is what was logged."""

from __future__ import annotations

import sys

import pytest

from vitfx.support.errors import UserError
from vitfx.support.pictures import has_matplotlib, png_bytes
from vitfx.training.curves import draw_curves, draw_flow
from vitfx.training.state import Epoch, Log

LAYERS = ["embed", "blocks.0.mlp_$1", "head"]


def log(epochs: int, steps: int = 3) -> Log:
    flow = {"mean": [1e-3, 0.0, 1e-1], "max": [1e-2, 0.0, 1.0]}
    found = [Epoch(one, 3.0 - one / 100, 2.9, 0.1 + one / 100, 1e-3, 10.0, flow) for one in range(1, epochs + 1)]
    return Log([float(step) for step in range(epochs * steps)], found)


@pytest.mark.parametrize("epochs", [1, 2, 30])
def test_curves(epochs: int) -> None:
    figure = draw_curves(log(epochs), 3)
    by_step, by_epoch, validation = figure.axes[0].lines
    assert list(validation.get_xdata()) == list(range(1, epochs + 1))
    assert list(by_epoch.get_xdata()) == [one - 0.5 for one in range(1, epochs + 1)]
    assert list(by_step.get_ydata()) == [float(step) for step in range(3 * epochs)]
    assert by_step.get_xdata()[0] == pytest.approx(0.5 / 3)
    assert f"after epoch {epochs}" in figure.axes[1].get_title()
    assert png_bytes(lambda: figure).startswith(b"\x89PNG")


def test_many_steps_are_drawn_as_means() -> None:
    by_step = draw_curves(log(5, 1000), 1000).axes[0].lines[0]
    assert len(by_step.get_xdata()) == 200
    assert by_step.get_ydata()[0] == 12.0
    assert by_step.get_xdata()[-1] < 5


@pytest.mark.parametrize("epochs", [1, 2, 30])
def test_the_flow(epochs: int) -> None:
    figure = draw_flow(log(epochs), LAYERS)
    assert [label.get_text() for label in figure.axes[1].get_xticklabels()] == LAYERS
    drawn = {line.get_label() for line in figure.axes[0].lines}
    assert {"epoch 1, mean", f"epoch {epochs}, greatest"} <= drawn
    assert figure.axes[1].images[0].get_array().shape == (epochs, 3)
    png = png_bytes(lambda: figure)
    assert png.startswith(b"\x89PNG")
    assert all("$" not in label.get_text() for label in figure.axes[0].get_yticklabels())


def test_without_matplotlib_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert not has_matplotlib()
    with pytest.raises(UserError, match=r"pip install 'vitfx\[plot\]'"):
        png_bytes(lambda: draw_curves(log(1), 3))

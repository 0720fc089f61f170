"""vitfx.training.confusion: counts by hand, shares of processes, the files."""

from __future__ import annotations

import csv
from typing import Any

import pytest
import torch
from torch import nn

from vitfx.images.pixel_cache import Pixels
from vitfx.images.preprocess import Preprocess
from vitfx.support.pictures import png_bytes
from vitfx.support.processes import Alone
from vitfx.training.confusion import Confusion, classes_csv, confuse, draw_confusion, matrix_csv, to_json

GREY = Preprocess((1, 1), mean=(0.0,), std=(1.0,))
CLASSES = ("ant", "bee, wild", "cat")


class ByValue(nn.Module):
    """Answers with the class that the only pixel names, with logit 2."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        assert not self.training
        return 2 * torch.nn.functional.one_hot((images.flatten(1)[:, 0] * 255).round().long(), 3).float() * self.weight


@pytest.fixture
def pixels() -> Pixels:
    answers = torch.tensor([0, 0, 1, 1, 0], dtype=torch.uint8).reshape(5, 1, 1, 1)
    return Pixels((5, 1, 1, 1), torch.tensor([0, 0, 0, 1, 1]), 0, "print", answers, None)


def found(pixels: Pixels, share: Alone | None = None) -> Confusion:
    answer = confuse(ByValue().train(), pixels, GREY, 3, batch=2, precision="fp32", share=share or Alone())
    assert answer is not None
    return answer


def test_counts_loss_and_shares(pixels: Pixels) -> None:
    one = found(pixels)
    assert one.counts.tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 0]]
    assert one.images == 5
    assert one.accuracy == 0.6
    assert one.by_class() == [pytest.approx(2 / 3), 0.5, None]
    right = torch.log(torch.tensor(2 + torch.e**2)) - 2
    assert one.loss == pytest.approx(float(right + 2 * 0.4), rel=1e-5)


def test_processes_share_the_images(pixels: Pixels) -> None:
    class Part(Alone):
        def __init__(self, rank: int) -> None:
            self.rank, self.world = rank, 2

    parts = [found(pixels, Part(rank)) for rank in range(2)]
    assert torch.equal(parts[0].counts + parts[1].counts, found(pixels).counts)
    assert parts[0].loss + parts[1].loss == pytest.approx(found(pixels).loss)


def test_it_gives_up_where_it_is_told_to(pixels: Pixels) -> None:
    told: list[tuple[int, int]] = []

    def goes_on(done: int, total: int) -> bool:
        told.append((done, total))
        return done < 4

    model = ByValue().train()
    assert confuse(model, pixels, GREY, 3, batch=2, precision="fp32", share=Alone(), goes_on=goes_on) is None
    assert told == [(2, 5), (4, 5)]


def test_the_files(pixels: Pixels) -> None:
    one = found(pixels)
    rows = list(csv.reader(matrix_csv(one, CLASSES).splitlines()))
    assert rows[0][1:] == list(CLASSES)
    assert rows[1] == ["ant", "2", "1", "0"]
    rows = list(csv.reader(classes_csv(one, CLASSES).splitlines()))
    assert rows[2] == ["bee, wild", "2", "0.5", "ant", "1"]
    assert rows[3] == ["cat", "0", "", "", "0"]
    assert to_json(one, CLASSES)["classes"][2]["accuracy"] is None


@pytest.mark.parametrize("count", [3, 25, 60])
def test_the_picture(count: int) -> None:
    counts = torch.randint(0, 9, (count, count))
    figures = []

    def draw() -> Any:
        figures.append(draw_confusion(Confusion(counts, 1.0), [f"class_${index}" for index in range(count)]))
        return figures[0]

    assert png_bytes(draw).startswith(b"\x89PNG")
    figure = figures[0]
    assert f"{int(counts.sum()):,} images" in figure.axes[0].get_title()
    assert len(figure.axes[1].patches) == count

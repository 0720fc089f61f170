"""vitfx.recovery.teacher: answers are asked for once, and a run that goes on believes those of its state alone."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from vitfx.recovery.teacher import MOST_BYTES, Answers, fits

TRUE = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))


class Asked:
    def __init__(self, places: Tensor) -> None:
        self.places, self.missing = places, torch.tensor([], dtype=torch.long)

    def __call__(self, missing: Tensor) -> Tensor:
        self.missing = self.places[missing]
        return TRUE[self.missing]


@pytest.mark.parametrize("in_file", [False, True])
def test_each_place_is_asked_for_once(in_file: bool, tmp_path: Path) -> None:
    answers = Answers(10, 3, tmp_path / "answers" if in_file else None)
    first = torch.tensor([7, 2, 5])
    asked = Asked(first)
    assert torch.equal(answers(first, asked), TRUE[first])
    assert asked.missing.tolist() == [7, 2, 5]
    second = torch.tensor([5, 0, 7])
    asked = Asked(second)
    assert torch.equal(answers(second, asked), TRUE[second])
    assert asked.missing.tolist() == [0]
    asked = Asked(second)
    answers(second, asked)
    assert asked.missing.tolist() == []
    assert (tmp_path / "answers").exists() == in_file


def test_a_run_that_goes_on_believes_its_state_alone(tmp_path: Path) -> None:
    path = tmp_path / "answers"
    answers = Answers(10, 3, path)
    first, later = torch.tensor([1, 2]), torch.tensor([3, 4])
    answers(first, Asked(first))
    known = answers.known.clone()
    answers(later, Asked(later))
    again = Answers(10, 3, path, known)
    both = torch.tensor([2, 3])
    asked = Asked(both)
    assert torch.equal(again(both, asked), TRUE[both])
    assert asked.missing.tolist() == [3]
    fresh = Answers(10, 3, path)
    assert not fresh.known.any()
    path.unlink()
    assert not Answers(10, 3, path, known).known.any()


def test_too_many_answers_are_not_kept() -> None:
    assert fits(1000, 2, 200)
    assert not fits(1000, None, 200)
    assert fits(MOST_BYTES // 4 // 1000, 1, 1000)
    assert not fits(MOST_BYTES // 4 // 1000 + 1, 1, 1000)

"""A limit that calibration images kept and evaluation images do not is told."""

from __future__ import annotations

from typing import Any

import pytest

from vitfx.pruning.goal import DROP, FLOPS, KL, Goal
from vitfx.runs.prune import exceeded


def report(accuracy: float | None, kl: float, int8: dict[str, float] | None = None, agreement: float = 0.98) -> Any:
    return {
        "baseline": {"accuracy": None if accuracy is None else 0.755},
        "pruned": {"accuracy": accuracy},
        "kl": kl,
        "precision": int8,
        "agreement": agreement,
        "images": {"evaluation": 2000},
    }


@pytest.mark.parametrize(
    ("goal", "found", "task", "lost"),
    [
        (Goal(DROP, 1.0), report(0.739, 0.02), "classes", "1.60 points of top-1 lost, where at most 1 point of top-1 "),
        (
            Goal(DROP, 1.0),
            report(0.739, 0.02),
            "labels",
            "1.60 points of micro-F1 lost, where at most 1 point of micro",
        ),
        (Goal(KL, 0.02), report(None, 0.031), "classes", "KL 0.0310 nats from the original, where at most 0.02 nats"),
        (
            Goal(KL, 0.02),
            report(None, 0.031),
            "embedding",
            "cosine distance 0.0310 from the original, where cosine dist",
        ),
        (
            Goal(DROP, 1.0),
            report(0.75, 0.02, {"accuracy": 0.7, "kl": 1.0, "agreement": 0.9}),
            "classes",
            "5.50 points of top-1 lost",
        ),
    ],
)
def test_more_loss_than_allowed(goal: Goal, found: Any, task: str, lost: str) -> None:
    (sentence,) = exceeded(goal, found, task)
    assert sentence.startswith(f"on the evaluation images the limit is not kept: {lost}")
    assert sentence.endswith("ask for less, or calibrate on images that it has not seen")


def test_what_counting_so_few_can_not_tell_is_said() -> None:
    """Of 2,000 images 133 have another class, which is worth 1.15 points give or take 0.58."""
    (sentence,) = exceeded(Goal(DROP, 1.0), report(0.7435, 0.02, agreement=0.9335), "classes")
    assert sentence.startswith(
        "on the evaluation images: 1.15 points of top-1 lost, where at most 1 point of top-1 lost"
    )
    assert "the counts of 2,000 images have a standard error of 0.58" in sentence
    (sentence,) = exceeded(Goal(DROP, 0.5), report(0.7435, 0.02, agreement=0.9335), "classes")
    assert "the limit is not kept" in sentence


@pytest.mark.parametrize(
    ("goal", "found"),
    [
        (Goal(DROP, 1.0), report(0.7475, 9.0)),
        (Goal(DROP, 1.0), report(None, 9.0)),
        (Goal(KL, 0.02), report(0.1, 0.02)),
        (Goal(FLOPS, 0.5), report(0.1, 9.0)),
    ],
)
def test_what_is_kept_or_not_asked_is_not_told(goal: Goal, found: Any) -> None:
    assert exceeded(goal, found, "classes") == []

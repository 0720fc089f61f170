"""vitfx.pruning.expected_drop: calibrated, unbiased, less noisy than labels, which correct it where they must."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from vitfx.graph.divergence import Classes
from vitfx.pruning.expected_drop import ExpectedDrop

COUNT, TEMPERATURE = 4000, 0.6


def drawn(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A model's logits, labels that its probabilities at another temperature tell truly, and a worse model's logits."""
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(COUNT, 10, generator=random)
    labels = torch.multinomial((logits / TEMPERATURE).softmax(-1), 1, generator=random)[:, 0]
    return logits, labels, logits + 0.3 * torch.randn(COUNT, 10, generator=random)


def counted(logits: Tensor, labels: Tensor, worse: Tensor) -> Tensor:
    return 100 * ((logits.argmax(-1) == labels).double() - (worse.argmax(-1) == labels).double())


def test_the_temperature_is_found() -> None:
    logits, labels, _ = drawn(0)
    assert ExpectedDrop(Classes(), logits, labels).temperature == pytest.approx(TEMPERATURE, rel=0.06)


def test_it_is_what_labels_say_on_average_with_a_smaller_error() -> None:
    drops, counts = [], []
    for seed in range(20):
        logits, labels, worse = drawn(seed)
        drop, error = ExpectedDrop(Classes(), logits, labels)(worse)
        drops.append(drop)
        counts.append(float(counted(logits, labels, worse).mean()))
        spread = float(counted(logits, labels, worse).std()) / COUNT**0.5
        assert 0 < error < spread / 2
    # Both means of twenty: their errors are .15 and .05 points.
    assert sum(drops) / 20 == pytest.approx(sum(counts) / 20, abs=0.5)
    assert sum(drops) / 20 > 2


def test_labels_that_contradict_it_count() -> None:
    """The original is always right here, so that each change of class loses an image."""
    logits, _, worse = drawn(0)
    labels = logits.argmax(-1)
    # With labels for which the probabilities are calibrated, and others that a model is judged by.
    judged = ExpectedDrop(Classes(), logits, drawn(0)[1])
    judged.labels = labels
    assert judged(worse)[0] == pytest.approx(float(counted(logits, labels, worse).mean()))


def test_of_the_same_model_nothing_is_lost_but_for_what_one_more_change_would_make_of_it() -> None:
    logits, labels, worse = drawn(1)
    judged = ExpectedDrop(Classes(), logits, labels)
    assert judged(logits) == (0, 50 / COUNT)
    assert judged(logits[:1]) == (0, 50)
    assert judged(worse[:500])[0] == pytest.approx(ExpectedDrop(Classes(), logits, labels)(worse[:500])[0])


def test_changes_among_images_that_are_wrong_either_way_do_not_contradict_it() -> None:
    """Their labels say that nothing is lost, with no spread at all."""
    logits, labels, worse = drawn(3)
    judged = ExpectedDrop(Classes(), logits, labels)
    wrong = (logits.argmax(-1) != labels) & (worse.argmax(-1) != labels) & (logits.argmax(-1) != worse.argmax(-1))
    of_each = judged.probabilities.gather(1, torch.stack([judged.classes, worse.argmax(-1)], dim=1))
    dear = torch.where(wrong, of_each[:, 0] - of_each[:, 1], -1.0).topk(5).indices
    few = torch.cat([dear, (~wrong).nonzero()[:59, 0]])
    answers = torch.where(wrong[few][:, None], worse[few], logits[few])
    judged.classes, judged.labels, judged.probabilities = (
        each[few] for each in (judged.classes, labels, judged.probabilities)
    )
    drop, error = judged(answers)
    assert drop > 1 and error > 0.5


def test_probabilities_count_as_logits_do() -> None:
    logits, labels, worse = drawn(2)
    drop, error = ExpectedDrop(Classes(probabilities=True), logits.softmax(-1), labels)(worse.softmax(-1))
    assert (drop, error) == pytest.approx(ExpectedDrop(Classes(), logits, labels)(worse), rel=1e-4)

"""Retraining models whose answers are no classes: each kind's own loss, what is kept, and what is refused."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.fx import GraphModule

from passes.plan import DeletionPlan, SublayerDeletion
from passes.stream import read_sites
from tests.support.families import images
from tests.support.kinds import KIND, make, written_out
from tests.support.recover_runs import CPU, Heard, settings
from vitfx.graph.divergence import Divergence, make_divergence
from vitfx.graph.trace import to_canonical
from vitfx.graph.verify import rewrite
from vitfx.images.preprocess import Preprocess
from vitfx.images.splits import open_data
from vitfx.recovery.data import RecoverData, open_recover_data
from vitfx.recovery.distill import distillation
from vitfx.recovery.retrain import Recovered, recover
from vitfx.support.errors import UserError
from vitfx.support.progress import Silent

SLOW = ("label probabilities", "one logit without axis", "tokens")
NAMES = [
    *("labels", "embedding", "one value", "pixels"),
    *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW),
]


@cache
def teacher(name: str) -> GraphModule:
    return to_canonical(make(name), images(2)).graph_module


def measure_of(name: str) -> Divergence:
    with torch.no_grad():
        return make_divergence(KIND[name], teacher(name)(images(32)))


def data(folder: Path, labels: np.ndarray | None = None) -> RecoverData:
    pixels = np.random.default_rng(0).integers(0, 156, (40, 3, 32, 32)).astype(np.uint8)
    # Every second image is lighter, which labels may tell.
    pixels[1::2] += 100
    np.savez(folder / "d.npz", images=pixels, **({} if labels is None else {"labels": labels}))
    splits = open_data(str(folder / "d.npz"), Preprocess((32, 32), mean=(0.5,) * 3, std=(0.25,) * 3))
    return open_recover_data(splits.calibration, folder, Silent(), held_out=20, samples=10**6, seed=0)


def run(name: str, given: RecoverData, heard: Heard | None = None, **changes: object) -> Recovered:
    deletions = [
        SublayerDeletion(site.name, site.module.kind, tuple(range(site.module.units // 2)), site.module.units)
        for site in read_sites(teacher(name))
    ]
    student = rewrite(teacher(name), DeletionPlan(tuple(deletions))).graph_module.eval()
    return recover(
        student, teacher(name), given, settings(**{"augment": "auto", "epochs": 6, **changes}), device=CPU,
        watcher=heard or Heard(), measure=measure_of(name),
    )  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_what_is_taught_is_the_divergence_of_the_kind(name: str) -> None:
    with torch.no_grad():
        clean, other = (teacher(name)(images(16)[order]).double() for order in (range(16), range(15, -1, -1)))
    measure = make_divergence(KIND[name], clean)
    expected = written_out(name, clean, other).mean().item()
    assert distillation(other, clean, 1.0, measure).item() == pytest.approx(expected, rel=1e-4)
    if name == "labels":
        softened = 9 * written_out(name, clean / 3, other / 3).mean().item()
        assert distillation(other, clean, 3.0, measure).item() == pytest.approx(softened, rel=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_every_kind_comes_nearer_to_the_teacher(name: str, tmp_path: Path) -> None:
    found = run(name, data(tmp_path), hidden=0.0 if name in ("labels", "tokens") else 1.0)
    first, best = found.checks[0], found.checks[found.best]
    assert best.kl < 0.9 * first.kl
    assert first.to_json()["task"] == KIND[name]
    words = {"labels": "Bernoulli KL", "embedding": "cosine distance"}.get(KIND[name], "relative squared error")
    assert f"{words} from the teacher" in str(first) and "top-1" not in str(first)
    assert found.augment == "none" if KIND[name] == "dense" else found.augment in ("flip", "none")


@pytest.mark.parametrize("loss", ["ce", "both"])
def test_labels_of_one_logit_are_learnt(loss: str, tmp_path: Path) -> None:
    found = run("one logit", data(tmp_path, np.arange(40) % 2), loss=loss, epochs=8)
    assert sum(found.losses[-3:]) < sum(found.losses[:3])
    assert found.checks[0].accuracy is not None and "micro-F1" in str(found.checks[0])


@pytest.mark.parametrize("name", ["embedding", "one value", "pixels"])
def test_labels_say_nothing_of_other_answers(name: str, tmp_path: Path) -> None:
    kind = KIND[name]
    with pytest.raises(UserError, match=f"`loss` ce learns from labels, of which answers that are {kind} have none"):
        run(name, data(tmp_path, np.arange(40) % 2), loss="ce")


def test_labels_without_a_logit(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="more classes than the model's 1 logits"):
        run("one logit", data(tmp_path, np.arange(40) % 3), loss="ce")

"""vitfx.recovery.retrain: it learns, never ends worse, goes on to the bit, follows the clock, refuses what
does not fit."""

from __future__ import annotations

import copy
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

import vitfx.recovery.allowed
import vitfx.recovery.retrain
from tests.support.recover_runs import CPU, Heard, data, run, settings, student, teacher
from vitfx.graph.divergence import CLASSES, Embedding
from vitfx.recovery.checks import Check, best_of, held_out_logits, is_stale, scores
from vitfx.recovery.course import Course
from vitfx.recovery.retrain import Recovered, Store, recover
from vitfx.recovery.settings import HIDDEN, RecoverSettings, rate_factor
from vitfx.support.errors import UserError
from vitfx.support.progress import Silent


def same(one: Recovered, other: Recovered) -> bool:
    ours, theirs = one.module.state_dict(), other.module.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(value, theirs[name]) for name, value in ours.items())


@pytest.mark.parametrize("changes", [{}, {"hidden": 0.5}, {"augment": "crop"}], ids=["kd", "hidden", "crop"])
def test_it_comes_nearer_to_the_teacher_without_labels(changes: dict[str, Any], tmp_path: Path) -> None:
    given, original = student(), teacher()
    before = {name: value.clone() for model in (given, original) for name, value in model.state_dict().items()}
    found = run(tmp_path, given, epochs=8, **changes)
    first, best = found.checks[0], found.checks[found.best]
    assert best.kl < 0.9 * first.kl
    assert (first.loss, first.accuracy) == (None, None)
    assert len(found.losses) == found.steps == 8 * 3
    after = {name: value for model in (given, original) for name, value in model.state_dict().items()}
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert not found.module.training
    assert all(parameter.requires_grad for parameter in found.module.parameters())


@pytest.mark.parametrize("loss", ["ce", "both"])
def test_labels_are_learnt(loss: str, tmp_path: Path) -> None:
    found = run(tmp_path, images=data(tmp_path), epochs=8, loss=loss)
    assert sum(found.losses[-3:]) < 0.9 * sum(found.losses[:3])


def test_what_is_kept_is_the_best_look(tmp_path: Path) -> None:
    images = data(tmp_path, labelled=False)
    found = run(tmp_path, images=images, epochs=4, lr=1e-2)
    wanted = held_out_logits(teacher(), images, CPU, "fp32")
    kept = scores(held_out_logits(found.module, images, CPU, "fp32"), wanted, images)
    assert kept["kl"] == pytest.approx(min(check.kl for check in found.checks), rel=1e-5)


@pytest.mark.parametrize(("only", "rate"), [("all", 3.0), ("lora", 100.0)])
def test_it_never_ends_worse_than_it_began(only: str, rate: float, tmp_path: Path) -> None:
    """At a rate that throws it far away, it is as it was, to the bit."""
    wrong = run(tmp_path, lr=rate, clip=0, only=only, epochs=3)
    assert min(check.kl for check in wrong.checks[1:]) > wrong.checks[0].kl
    assert wrong.best == 0
    plain = student().state_dict()
    assert all(torch.equal(value, plain[name]) for name, value in wrong.module.state_dict().items())


@pytest.mark.parametrize("changes", [{}, {"only": "lora", "augment": "crop"}, {"hidden": 1.0}], ids=str)
def test_a_stopped_run_goes_on_to_the_same_bits(
    changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = data(tmp_path, labelled=False)
    unbroken = run(tmp_path, images=images, epochs=3, **changes)
    store = Store(tmp_path / "out" / "state", seconds=1e9)

    def again() -> Recovered:
        chosen = settings(epochs=3, **changes)
        return recover(student(), teacher(), images, chosen, device=CPU, watcher=Silent(), store=store)

    for stop in (2, 5):
        with monkeypatch.context() as patched:
            step = Course._step

            def pressed(self: Course, batch: Any, step: Any = step, stop: int = stop) -> None:
                step(self, batch)
                if len(self.losses) == stop:
                    signal.raise_signal(signal.SIGINT)

            patched.setattr(Course, "_step", pressed)
            with pytest.raises(KeyboardInterrupt):
                again()
    found = again()
    assert found.losses == unbroken.losses
    assert [check.kl for check in found.checks] == [check.kl for check in unbroken.checks]
    assert found.flow == unbroken.flow
    assert same(found, unbroken)
    assert same(again(), unbroken)
    with pytest.raises(UserError, match="of a training that was stopped after 9 steps, with other settings"):
        recover(student(), teacher(), images, settings(seed=1), device=CPU, watcher=Silent(), store=store)
    store.discard()
    assert not list((tmp_path / "out").iterdir())


def test_the_teacher_answers_each_image_and_mirror_image_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    ask = vitfx.recovery.retrain.Teacher.ask
    monkeypatch.setattr(
        vitfx.recovery.retrain.Teacher, "ask", lambda self, images: (asked.append(len(images)), ask(self, images))[1]
    )
    images = data(tmp_path, labelled=False)
    run(tmp_path, images=images, epochs=6, batch=len(images.train))
    assert sum(asked) == 2 * len(images.train)
    asked.clear()
    run(tmp_path, images=images, epochs=6, batch=len(images.train), augment="none")
    assert sum(asked) == len(images.train)
    asked.clear()
    run(tmp_path, images=images, loss="kd", epochs=3, batch=len(images.train), augment="crop")
    assert sum(asked) == 3 * len(images.train)


def test_the_clock_ends_it_and_leads_the_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("vitfx.recovery.course.time.monotonic", lambda: now[0])
    step, rates = Course._step, []

    def slow(self: Course, batch: Any) -> None:
        step(self, batch)
        rates.append(self.optimizer.param_groups[0]["lr"])
        now[0] += 3.0

    monkeypatch.setattr(Course, "_step", slow)
    found = run(tmp_path, epochs=None, minutes=1, lr=1e-3)
    assert found.steps == 20
    assert found.seconds == 60
    expected = [min(rate_factor(3 * place / 60), (place + 1) / 20) for place in range(20)]
    assert rates == pytest.approx([1e-3 * factor for factor in expected])
    assert [check.progress for check in found.checks] == pytest.approx([0, 0.25, 0.5, 0.75, 1])


def test_a_run_that_goes_on_has_the_time_that_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("vitfx.recovery.course.time.monotonic", lambda: now[0])
    step, images = Course._step, data(tmp_path, labelled=False)

    def slow(self: Course, batch: Any) -> None:
        step(self, batch)
        now[0] += 3.0
        if len(self.losses) in (7, 12):
            signal.raise_signal(signal.SIGINT)

    def again() -> Recovered:
        chosen = settings(epochs=None, minutes=1)
        store = Store(tmp_path / "out" / "state", seconds=1e9)
        return recover(student(), teacher(), images, chosen, device=CPU, watcher=Silent(), store=store)

    monkeypatch.setattr(Course, "_step", slow)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            again()
        now[0] += 1000.0
    found = again()
    assert (found.steps, found.seconds) == (20, 60)


def test_a_run_goes_on_with_its_own_models_and_length_alone(tmp_path: Path) -> None:
    images, store = data(tmp_path, labelled=False), Store(tmp_path / "state")

    def again(pruned: Any = None, original: Any = None, steps: int = 2, measure: Any = CLASSES) -> Recovered:
        return recover(
            pruned or student(), original or teacher(), images, settings(), device=CPU, watcher=Silent(), store=store,
            steps=steps, measure=measure,
        )  # fmt: skip

    assert again().steps == 2
    other = copy.deepcopy(teacher())
    with torch.no_grad():
        next(other.parameters()).mul_(2)
    for changed in ({"pruned": student({"a0": (0,)})}, {"original": other}, {"steps": 3}, {"measure": Embedding()}):
        with pytest.raises(UserError, match="of a training that was stopped after 2 steps, with other settings"):
            again(**changed)


def test_a_look_that_takes_the_time_of_all_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("vitfx.recovery.course.time.monotonic", lambda: now[0])
    check = Course._check

    def slow(self: Course) -> None:
        check(self)
        now[0] += 25.0

    monkeypatch.setattr(Course, "_check", slow)
    with pytest.raises(UserError, match=r"took 25 s, 25 of them to evaluate 6 held-out images, .* of `minutes` 1:"):
        run(tmp_path, epochs=None, minutes=1)


def test_streams_are_taught_where_a_teacher_is_and_nobody_says_otherwise() -> None:
    assert RecoverSettings(epochs=1).objective.hidden == HIDDEN
    assert RecoverSettings(epochs=1, loss="both").to_json()["hidden"] == HIDDEN
    assert RecoverSettings(epochs=1, loss="ce").objective.hidden == 0
    assert RecoverSettings(epochs=1, hidden=0.0).objective.hidden == 0


def test_without_a_sublayer_in_common_logits_are_taught_alone(tmp_path: Path) -> None:
    nothing = {"a0": (0, 1), "a1": (0, 1), "m0": tuple(range(16)), "m1": tuple(range(16))}
    assert run(tmp_path, student(nothing), hidden=None).steps > 0
    with pytest.raises(UserError, match="shares no sublayer with the teacher: leave out `hidden`"):
        run(tmp_path, student(nothing), hidden=1.0)


def test_auto_leaves_mirror_images_out_where_the_teacher_does_not_know_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = data(tmp_path, labelled=False)
    for least, wanted, said in ((0.0, "flip", "are trained on as well"), (1.1, "none", "are left out")):
        monkeypatch.setattr(vitfx.recovery.allowed, "_MIRROR_AGREEMENT", least)
        heard = Heard()
        chosen = settings(augment="auto", epochs=1)
        found = recover(student(), teacher(), images, chosen, device=CPU, watcher=heard)
        assert found.augment == wanted
        assert any(said in sentence for sentence in heard.said)


def check(kl: float, accuracy: float | None = None, loss: float | None = None) -> Check:
    return Check(0.0, 0, 0.0, loss, accuracy, kl, 0.0, 0.0, None)


@pytest.mark.parametrize(("label_share", "best"), [(0.0, 3), (1.0, 1), (0.25, 2)])
def test_the_best_look_misses_least_of_what_is_taught(label_share: float, best: int) -> None:
    looks = [check(0.8, 0.5, 2.0), check(0.6, 0.7, 1.0), check(0.3, 0.6, 1.2), check(0.2, 0.5, 1.8)]
    assert best_of(looks, label_share) == best
    # Equals, and one that misses less and has fewer images right than the first look.
    assert best_of([*looks, looks[best], check(0.1, 0.49, 0.9)], label_share) == best
    assert best_of([check(0.8, 0.5, 2.0), check(0.1, 0.49, 0.9)], label_share) == 0


def test_without_labels_the_divergence_decides() -> None:
    assert best_of([check(0.5), check(0.4), check(0.4), check(0.6)], 0.0) == 1


def test_early_stop_wants_every_figure_to_stand_still() -> None:
    worse = [check(0.5, 0.5, 1.0), check(0.6, 0.4, 1.1), check(0.5, 0.5, 1.0)]
    assert is_stale(worse, 2)
    assert not is_stale(worse, 3)
    assert not is_stale([*worse[:2], check(0.49, 0.4, 1.1)], 2)
    assert not is_stale([*worse[:2], check(0.6, 0.4, 0.9)], 2)
    assert not is_stale([*worse[:2], check(0.6, 0.51, 1.1)], 2)


def test_a_hopeless_run_stops_early(tmp_path: Path) -> None:
    found = run(tmp_path, lr=3.0, clip=0, epochs=10, checks=10, patience=3)
    assert found.best == 0
    assert len(found.checks) < 11
    assert found.steps < 30


def test_rates() -> None:
    given = [RecoverSettings(epochs=1, **one) for one in ({}, {"hidden": 0}, {"loss": "ce"}, {"lr": 0.5, "hidden": 0})]
    assert [one.rate for one in given] == pytest.approx([5e-5, 1e-5, 1e-5, 0.5])
    assert [one.rate_at(0.135 / 4) for one in given] == pytest.approx([1.25e-5, 1e-5, 1e-5, 0.5]), "near the teacher"
    assert [given[0].rate_at(kl) for kl in (0.0, 0.135, 2.0)] == pytest.approx([5e-6, 5e-5, 5e-5])
    assert rate_factor(0.05) == 1
    assert rate_factor(0.025) == pytest.approx(0.5)
    assert rate_factor(0.525) == pytest.approx(0.505)
    assert rate_factor(1.0) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({}, "give either `epochs` or `minutes`"),
        ({"epochs": 1, "minutes": 1}, "give either `epochs` or `minutes`"),
        ({"epochs": 0}, "`epochs` is 0: give a number above 0"),
        ({"minutes": float("nan")}, "`minutes` is nan"),
        ({"epochs": 1, "loss": "mse"}, "`loss` is 'mse': choose one of kd, ce, both"),
        ({"epochs": 1, "only": "head"}, "`only` is 'head'"),
        ({"epochs": 1, "temperature": -1}, "`temperature` is -1"),
        ({"epochs": 1, "hidden": -0.1}, "`hidden` is -0.1: give 0 or more"),
        ({"epochs": 1, "ce_share": 1.5}, "`ce_share` is 1.5: give a share from 0 to 1"),
    ],
)
def test_settings_that_cannot_be(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        RecoverSettings(**given)
    assert sentence in str(caught.value)


def test_labels_that_are_not_there_and_a_rate_that_is_too_high(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`loss` ce needs labels and the images have none: give `loss` kd"):
        run(tmp_path, loss="ce")
    with pytest.raises(UserError, match=r"the loss is .* at step .*: give a learning rate below"):
        run(tmp_path, lr=1e30, clip=0, epochs=5)

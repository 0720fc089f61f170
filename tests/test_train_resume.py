"""A training that is killed or stopped goes on as if nothing had been: the same losses, the same weights."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import vitfx.runs.train_files
from tests.support.train_runs import history, logged, report, run_few, weights
from tests.test_train import ALL
from vitfx.runs.train_files import Files
from vitfx.training.loop import Loop
from vitfx.training.trainer import Trainer

ROOT = Path(__file__).parents[1]
OPTIONS = [*ALL, "--save-seconds", "0", "--precision", "bf16"]
_KILLED = """
import os, signal, sys
import torch
torch.set_num_threads(1)
import vitfx.runs.train_files
vitfx.runs.train_files.has_matplotlib = lambda: False
from vitfx.training.trainer import Trainer
from tests.support.train_runs import run_few
from pathlib import Path

step = Trainer.step
def dies(self, number, images, labels):
    # Between the backward pass of the third step of the second epoch and its state.
    loss = step(self, number, images, labels)
    if number == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return loss
Trainer.step = dies
run_few(Path(sys.argv[1]), *sys.argv[2:], epochs=3)
"""


@pytest.fixture(autouse=True, scope="module")
def _undrawn() -> Iterator[None]:
    """Pictures take longer than trainings as small as these."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(vitfx.runs.train_files, "has_matplotlib", lambda: False)
        yield


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("unbroken") / "out"
    assert run_few(out, *OPTIONS, epochs=3) == 0
    return out


def assert_same_course(out: Path, unbroken: Path) -> None:
    found, wanted = history(out), history(unbroken)
    assert found["losses"] == wanted["losses"]
    for one, other in zip(found["epochs"], wanted["epochs"], strict=True):
        assert {**one, "images_per_second": 0} == {**other, "images_per_second": 0}
    for name in ("last.pt", "best.pt"):
        after, before = weights(out / name), weights(unbroken / name)
        assert all(torch.equal(after[key], before[key]) for key in before)
    assert report(out)["last"] == report(unbroken)["last"]
    assert not (out / "state.pt").exists()


def test_kill_9_in_the_middle_of_an_epoch(tmp_path: Path, unbroken: Path) -> None:
    out = tmp_path / "out"
    done = subprocess.run(
        [sys.executable, "-c", _KILLED, str(out), *OPTIONS, "--tensorboard"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    assert len(torch.load(out / "state.pt", weights_only=True)["log"]["losses"]) == 6
    assert not (out / "report.json").exists()
    # TensorBoard reads files in the order of the second in which they were begun.
    time.sleep(1.1)
    assert run_few(out, *OPTIONS, "--tensorboard", epochs=3) == 0
    assert_same_course(out, unbroken)
    assert logged(out, "train/loss") == [
        (step, pytest.approx(loss)) for step, loss in enumerate(history(out)["losses"])
    ]
    assert [step for step, _ in logged(out, "validation/loss")] == [3, 7, 11]


@pytest.mark.parametrize("stop", [1, 6, 8], ids=["in the first epoch", "in the second", "while evaluating"])
def test_ctrl_c_is_one_sentence_and_goes_on(
    stop: int, tmp_path: Path, unbroken: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        if stop == 8:
            end = Loop._end_epoch
            patched.setattr(Loop, "_end_epoch", lambda *given: (_press(given[1] == 8), end(*given))[1])
        else:
            _press_in_step(patched, stop - 1)
        # With states far apart it is Ctrl-C alone that saves.
        assert run_few(out, *OPTIONS, "--save-seconds", "1e9", epochs=3) == 130
    said = capsys.readouterr().err
    assert said.rstrip().endswith("stopped; the same command goes on where it stopped")
    assert "Traceback" not in said
    assert len(torch.load(out / "state.pt", weights_only=True)["log"]["losses"]) == stop
    assert run_few(out, *OPTIONS, epochs=3) == 0
    assert f"going on after step {stop}, in bf16" in capsys.readouterr().out
    assert_same_course(out, unbroken)


def _press(now: bool) -> None:
    if now:
        signal.raise_signal(signal.SIGINT)


def _press_in_step(patched: pytest.MonkeyPatch, number: int) -> None:
    step = Trainer.step
    patched.setattr(Trainer, "step", lambda *given: (_press(given[1] == number), step(*given))[1])


def test_another_command_is_not_mixed_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        _press_in_step(patched, 1)
        assert run_few(out, "--save-seconds", "1e9") == 130
    state = (out / "state.pt").read_bytes()
    for other in (["--lr", "1e-4"], ["--seed", "1"], ["--dropout", "0.1"]):
        assert run_few(out, *other) == 2
        assert "of a training that was stopped after 2 steps, with other settings" in capsys.readouterr().err
    assert (out / "state.pt").read_bytes() == state
    assert run_few(out, "--lr", "1e-4", "--force") == 0
    assert report(out)["settings"]["training"]["lr"] == 1e-4


def test_force_begins_anew_with_the_same_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        _press_in_step(patched, 1)
        assert run_few(out, "--force") == 130
    assert "stopped; the same command without --force goes on where it stopped" in capsys.readouterr().err
    steps, step = list[int](), Trainer.step
    monkeypatch.setattr(Trainer, "step", lambda *given: (steps.append(given[1]), step(*given))[1])
    assert run_few(out, "--force") == 0
    assert steps == [0, 1, 2, 3]


def test_an_epochs_log_outlives_a_stop_right_after_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    with monkeypatch.context() as patched:
        step = Trainer.step
        # The first step of the second epoch, whose state is the first one's last.
        patched.setattr(Trainer, "step", lambda *given: step(*given) if given[1] != 4 else pytest.fail("killed"))
        with pytest.raises(pytest.fail.Exception, match="killed"):
            run_few(out, "--tensorboard", epochs=2)
    assert run_few(out, "--tensorboard", epochs=2) == 0
    for tag, name in (("validation/loss", "loss"), ("validation/top-1", "accuracy")):
        wanted = [(end, pytest.approx(one[name])) for end, one in zip((3, 7), history(out)["epochs"], strict=True)]
        assert logged(out, tag) == wanted


def test_states_are_saved_by_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step without a pause, at the beginning and after the epoch alone with a long one."""
    saved: list[int] = []
    save = Files.save_state
    monkeypatch.setattr(Files, "save_state", lambda self: (saved.append(len(self.log.losses)), save(self))[1])
    assert run_few(tmp_path / "often", "--save-seconds", "0") == 0
    assert saved == [0, 1, 2, 3, 4, 4]
    saved.clear()
    assert run_few(tmp_path / "seldom", "--save-seconds", "1e9") == 0
    assert saved == [0, 4]

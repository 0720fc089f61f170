"""Two processes under torchrun retrain a pruned model: the course of one, by steps and by the clock."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import torch

from tests.support.prune_runs import DIGITS, GREY, checkpoint
from tests.support.recover_runs import npz, pruned_file, run
from tests.support.torchrun import run_two
from vitfx.images.splits import open_data
from vitfx.recovery.data import open_recover_data
from vitfx.support.progress import Silent

HELD_OUT = 7
OPTIONS = [
    "--epochs", "2", "--batch", "16", "--hidden", "0", "--lr", "1e-3", "--precision", "fp32", "--checks", "2",
    "--augment", "flip", "--held-out", str(HELD_OUT), "--eval-samples", "8", "--device", "cpu", "--save-seconds", "0",
]  # fmt: skip
"""Streams are taught relative to a batch's own spread, which two halves do not have: logits alone."""
_PROCESS = """
import signal, sys
from contextlib import nullcontext
from pathlib import Path
import torch
torch.set_num_threads(1)
import vitfx.recover
from tests.test_recover_processes import command
from tests.support.recover_runs import CPU, data, settings, student, teacher
from vitfx.recovery.course import Course
from vitfx.recovery.retrain import recover
from vitfx.support.processes import open_share
from vitfx.support.progress import Silent

folder, step = Path(sys.argv[1]), Course._step
with open_share(CPU) as share:
    # A process can join once only.
    vitfx.recover.open_share = lambda device: nullcontext(share)

    def stops(self, batch):
        # Ctrl-C reaches one process before the other.
        if len(self.losses) == 2 and share.rank == 1:
            signal.raise_signal(signal.SIGINT)
        return step(self, batch)

    Course._step = stops
    codes = [vitfx.recover.main(command(folder))]
    Course._step = step
    codes.append(vitfx.recover.main(command(folder)))
    clock = settings(epochs=None, minutes=0.05, hidden=1.0)
    if share.rank == 1:
        # A clock that stands still.
        Course.seconds = property(lambda self: 0.0)
    result = recover(student(), teacher(), data(folder), clock, device=CPU, watcher=Silent(), share=share)
    sums = [float(value.double().sum()) for value in result.module.state_dict().values()]
    (folder / f"ended{share.rank}").write_text(repr((codes, result.steps, sums)))
    vitfx.recover.main(command(folder, "--batch", "15", "--force"))
"""


def command(folder: Path, *more: str) -> list[str]:
    given = [str(folder / "pruned.pt"), "--teacher", str(folder / "model.pt"), "--data", str(npz(folder))]
    return [*given, *OPTIONS, "--cache", str(folder / "cache"), "--out", str(folder / "out"), *more]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("two")
    checkpoint(folder / "model.pt")
    pruned_file(folder / "pruned.pt")
    npz(folder)
    done = run_two(_PROCESS, folder, 180)
    assert (folder / "ended1").exists(), done.stderr
    return folder, done


def test_two_processes_retrain_as_one(two: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = two
    report = json.loads((folder / "out" / "report.json").read_text())
    shared = report["recovery"]
    assert report["settings"]["processes"] == 2
    splits = open_data(str(npz(folder)), GREY, DIGITS)
    images = open_recover_data(splits.calibration, folder, Silent(), held_out=HELD_OUT, samples=10**6, seed=0)
    alone = run(folder, images=images, checks=2)
    assert shared["steps"] == alone.steps == 6
    for mine, others in zip(shared["checks"], alone.checks, strict=True):
        assert mine["kl"] == pytest.approx(others.kl, rel=1e-3)
        assert mine["agreement"] == others.agreement
    weights = torch.load(folder / "out" / "pruned.pt", weights_only=True)["state_dict"]
    for name, value in alone.module.state_dict().items():
        torch.testing.assert_close(weights[name], value, atol=2e-3, rtol=1e-2)
    assert done.stdout.count("resuming after step 3") == 1
    assert done.stderr.count("stopped; the same command goes on") == 1


def test_all_go_by_the_first_clock(two: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    first, second = ((two[0] / f"ended{rank}").read_text() for rank in range(2))
    assert first == second
    assert first.startswith("([130, 0], ")


def test_a_batch_that_can_not_be_shared(two: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    errors = [line for line in two[1].stderr.splitlines() if line.startswith("error: ")]
    assert errors == ["error: --batch is 15, which 2 processes can't share equally: give a multiple"]

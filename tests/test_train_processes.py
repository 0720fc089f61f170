"""Two processes under torchrun: the course of one, one that writes and speaks, Ctrl-C that stops both."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from tests.support.torchrun import run_two
from tests.support.train_runs import few, history, report, run_few, weights

# Stochastic depth draws in each process for itself.
OPTIONS = ["--drop-path", "0", "--set", "training.average=0.9", "--set", "training.flow_every=1"]
_PROCESS = """
import os, signal, sys
from contextlib import nullcontext
from pathlib import Path
import torch
torch.set_num_threads(1)
import vitfx.train
import vitfx.runs.train_files
vitfx.runs.train_files.has_matplotlib = lambda: False
from tests.test_train_processes import OPTIONS
from tests.support.train_runs import run_few
from vitfx.support.processes import open_share
from vitfx.training.trainer import Trainer

out, step = Path(sys.argv[1]), Trainer.step
with open_share(torch.device("cpu")) as share:
    # A process can join once only.
    vitfx.train.open_share = lambda device: nullcontext(share)

    def stops(self, number, images, labels):
        # Ctrl-C reaches one process before the other.
        if number == 2 and share.rank == 1:
            signal.raise_signal(signal.SIGINT)
        return step(self, number, images, labels)

    Trainer.step = stops
    codes = [run_few(out, *OPTIONS, epochs=2)]
    Trainer.step = step
    codes.append(run_few(out, *OPTIONS, epochs=2))
    speak, vitfx.cli.exit_codes.let_speak = vitfx.cli.exit_codes.let_speak, lambda: None
    codes.append(run_few(out.parent / "diverged", *OPTIONS, "--lr", "1e30", "--set", "training.clip=0", epochs=3))
    vitfx.cli.exit_codes.let_speak = speak
    (out / f"codes{share.rank}").write_text(str(codes))
    sys.exit(run_few(out, "--batch", "15", "--force"))
"""


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    out = tmp_path_factory.mktemp("two") / "out"
    few(out.parent)
    done = run_two(_PROCESS, out, 180)
    assert (out / "codes1").exists(), done.stderr
    return out, done


def test_two_processes_train_as_one(two: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path) -> None:
    out, _ = two
    assert [(out / f"codes{rank}").read_text() for rank in range(2)] == ["[130, 0, 2]"] * 2
    assert run_few(tmp_path / "one", *OPTIONS, epochs=2) == 0
    shared, alone = history(out), history(tmp_path / "one")
    assert shared["losses"] == pytest.approx(alone["losses"], rel=1e-4)
    for one, other in zip(shared["epochs"], alone["epochs"], strict=True):
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert one["flow"]["mean"] == pytest.approx(other["flow"]["mean"], rel=1e-2)
    after, before = weights(out / "last.pt"), weights(tmp_path / "one" / "last.pt")
    for name, value in before.items():
        if name.endswith("qkv.bias"):
            # A third of it are the keys' biases: softmax takes no notice of them, and AdamW makes steps of rounding.
            continue
        torch.testing.assert_close(after[name], value, atol=1e-4, rtol=1e-3)
    assert report(out)["settings"]["processes"] == 2
    assert report(out)["last"]["images"] == 15


def test_one_process_speaks(two: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    out, said = two[1].stdout, two[1].stderr
    assert said.count("stopped; the same command goes on") == 1
    assert out.count("epoch 2 of 2: training loss") == 1
    assert "going on after step 3, in fp32" in out
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(lines) == 2
    assert lines[0].startswith("error: the loss is ")
    assert lines[1] == "error: --batch is 15, which 2 processes can't share equally: give a multiple"

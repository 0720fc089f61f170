"""Options that `python -m vitfx.discover` refuses, each in one sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.discover_runs import run
from tests.support.prune_runs import artifact

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return artifact(tmp_path_factory.mktemp("discover") / "model.pt")


REFUSED = {
    "τ twice": (("--tau", "0.1", "--tau-sweep", "1e-3:1e-1:3"), "--tau-sweep sets the thresholds: leave out --tau"),
    "no range": (("--tau-sweep", "1:2"), "--tau-sweep 1:2 is not LOW:HIGH:COUNT"),
    "backwards": (("--tau-sweep", "1:0.1:3"), "--tau-sweep 1:0.1:3 is not a range"),
    "one": (("--tau-sweep", "0.1:1:1"), "--tau-sweep 0.1:1:1 is not a range"),
    "no repeats": (("--repeats", "0"), "--repeats 0 is too small"),
    "negative": (("--eval-samples", "-1"), "--eval-samples -1 is negative"),
    "not measured": (
        ("--method", "eap", "--max-kl", "1"),
        "--max-kl is for methods that measure KL, eap only ranks edges",
    ),
    "not ranked": (("--remove", "0.1"), "--remove is for methods that rank edges, acdc decides by --tau"),
    "twice": (("--remove", "0.1", "--tau", "1", "--method", "eap"), "--remove 0.1 replaces --tau"),
    "an ensemble of one": (("--ensemble", "eap"), "--ensemble eap is no mean of several: give two methods or more"),
    "an ensemble beside a method": (
        ("--ensemble", "eap,relp", "--method", "eap"),
        "--ensemble is for ensemble, not eap: leave it out",
    ),
    "not looked at": (("--steps", "3"), "--steps is for eap-ig, eap-ig-activations, ensemble, not acdc: leave it out"),
    "learned": (
        ("--method", "edge-pruning", "--max-kl", "1"),
        "--max-kl is for methods that measure KL, edge-pruning ",
    ),
    "no threshold": (
        ("--method", "edge-pruning", "--tau", "1"),
        "--tau is not for edge-pruning, which learns a circuit",
    ),
    "no gates": (("--gate-steps", "9"), "--gate-steps is for edge-pruning, not acdc: leave it out"),
    "one half": (("--stability", "1"), "--stability 1 says nothing of agreement: give 2 halves or more, 0 for none"),
    "no halves": (
        ("--certain", "0.5"),
        "--certain 0.5 is a share of random halves: give their number with --stability",
    ),
    "more than all": (("--stability", "2", "--certain", "2"), "--certain 2 is not a share of the halves"),
    "many circuits": (
        ("--stability", "2", "--tau-sweep", "1e-3:1e-1:3"),
        "--stability is for one circuit: leave it out, or --tau-sweep",
    ),
    "no groups": (
        ("--granularity", "block", "--paths", "4"),
        "--paths 4 splits MLPs, which the block graph keeps whole",
    ),
    "memory": (("--memory", "1e-6"), "--memory 1e-06 GiB is too little for the "),
    "no memory": (("--memory", "-1"), "--memory -1 is not an amount of memory"),
    "device": (("--device", "abacus"), "device 'abacus' is not one of"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_refused(path: Path, tmp_path: Path, capsys: Captured, case: str) -> None:
    options, sentence = REFUSED[case]
    assert run(path, tmp_path / "out.json", *options) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {sentence}")
    assert said.count("\n") == 1
    assert list(tmp_path.iterdir()) == []

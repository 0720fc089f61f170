"""--weights: each command takes the weights that were asked for, says so in its first lines, and asks where it must."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.models.test_state_dicts import ARCH, AVERAGE, RAW
from vitfx import discover, recover, show, train
from vitfx.cli.parser import CommandParser
from vitfx.models.weights import fingerprint
from vitfx.support.errors import UserError
from vitfx.training.config import read_config
from vitfx.training.model import model_from


@pytest.fixture
def both(tmp_path: Path) -> str:
    torch.save({"state_dict": RAW, "state_dict_ema": AVERAGE}, tmp_path / "both.pt")
    return str(tmp_path / "both.pt")


@pytest.fixture
def images(tmp_path: Path) -> str:
    pixels = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3)).astype(np.uint8)
    np.savez(tmp_path / "images.npz", images=pixels)
    return str(tmp_path / "images.npz")


def test_show_says_which(both: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert show.main([both, "--arch", ARCH]) == 2
    assert "choose those that were evaluated with --weights ema or --weights raw" in " ".join(capsys.readouterr())
    for which, place in (("ema", "the average of the weights, state_dict_ema"), ("raw", "state_dict")):
        assert show.main([both, "--arch", ARCH, "--weights", which]) == 0
        assert capsys.readouterr().out.splitlines()[0] == f"weights: {place} of {both}"


def test_discover_says_which_and_repeats_the_option(
    both: str, images: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--arch", ARCH, "--data", images, "--samples", "4", "--method", "magnitude", "--granularity", "block"]
    given += ["--remove", "0.2", "--out", str(tmp_path / "circuit.json")]
    assert discover.main([both, *given]) == 2
    capsys.readouterr()
    assert discover.main([both, *given, "--weights", "ema"]) == 0
    said = "".join(capsys.readouterr())
    assert "weights: the average of the weights, state_dict_ema" in said.replace("\n", " ")
    assert "--weights ema" in said


@pytest.mark.parametrize("parser", [discover.build_parser, recover.build_parser, show.build_parser, train.build_parser])
def test_every_command_that_reads_bare_weights_has_it(parser: Callable[[], CommandParser]) -> None:
    assert "--weights" in parser().format_full_help()


@pytest.mark.parametrize(("which", "weights"), [("ema", AVERAGE), ("raw", RAW)])
def test_training_starts_from_those(both: str, which: str, weights: dict[str, torch.Tensor]) -> None:
    config, classes = read_config("digits", [], {"model.arch": ARCH}).model, ("a", "b", "c", "d", "e")
    with pytest.raises(UserError, match="choose those that were evaluated with `weights`"):
        model_from(both, ARCH, config, classes, None)
    made = model_from(both, ARCH, config, classes, None, which)
    body = {name: value for name, value in made.module.state_dict().items() if not name.startswith("head.")}
    assert fingerprint(body) == fingerprint({name: weights[name] for name in body})
    assert any(note.startswith("weights: ") for note in made.notes)


def test_training_without_a_file_has_no_choice(capsys: pytest.CaptureFixture[str]) -> None:
    assert train.main(["--data", "digits", "--weights", "ema"]) == 2
    assert "chooses among those of --init" in " ".join(" ".join(capsys.readouterr()).split())

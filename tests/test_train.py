"""vitfx.train: writes a checkpoint that loads, the same for the same seed, and refuses what it cannot do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from vitfx.checkpoint import load_model
from vitfx.data import Images, open_data
from vitfx.errors import UserError
from vitfx.models import ViT
from vitfx.train import DIGITS, accuracy, main, train

SMALL = ["--width", "16", "--depth", "2", "--heads", "2", "--mlp", "16", "--patch", "4", "--device", "cpu"]
MODEL = {"image_size": 8, "patch_size": 4, "channels": 1, "classes": 10, "width": 16, "depth": 2, "heads": 2, "mlp": 16}


@pytest.fixture(scope="module")
def digits() -> Images:
    return open_data("digits", DIGITS).calibration.load()


def run(out: Path, *options: str) -> int:
    return main(["--data", "digits", "--out", str(out), "--epochs", "1", *SMALL, *options])


def test_a_trained_checkpoint_loads_as_what_was_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "model.pt") == 0
    assert "of 359 held-out images are classified correctly" in capsys.readouterr().err
    loaded = load_model(str(tmp_path / "model.pt"))
    assert isinstance(loaded.module, ViT)
    assert loaded.preprocess == DIGITS
    assert loaded.classes == tuple("0123456789")
    assert loaded.data == "digits"
    assert loaded.module.positions.shape == (1, 5, 16)
    assert len(loaded.module.blocks) == 2
    written = torch.load(tmp_path / "model.pt", weights_only=True)
    assert written["made_by"].startswith(
        f"python -m vitfx.train --data digits --out {tmp_path / 'model.pt'} --epochs 1"
    )
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_the_same_seed_makes_the_same_weights(tmp_path: Path) -> None:
    prints = []
    for name, seed in (("one", "3"), ("two", "3"), ("other", "4")):
        assert run(tmp_path / name, "--seed", seed) == 0
        prints.append(load_model(str(tmp_path / name)).fingerprint)
    assert prints[0] == prints[1] != prints[2]


def test_the_same_command_makes_the_same_bytes(tmp_path: Path) -> None:
    assert run(tmp_path / "model.pt", "--force") == 0
    first = (tmp_path / "model.pt").read_bytes()
    assert run(tmp_path / "model.pt", "--force") == 0
    assert (tmp_path / "model.pt").read_bytes() == first


def test_training_learns(digits: Images) -> None:
    model = ViT(**MODEL)
    losses: list[float] = []
    train(model, digits, epochs=6, learning_rate=3e-3, seed=0, progress=lambda _, loss: losses.append(loss))
    assert len(losses) == 6
    assert losses[-1] < 0.8 * losses[0]
    assert accuracy(model, digits) > 0.5
    assert not model.training


def test_training_moves_every_weight_and_keeps_the_images(digits: Images) -> None:
    model = ViT(**MODEL)
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    pixels = digits.pixels.clone()
    train(model, digits, epochs=1, learning_rate=1e-3, seed=0)
    assert [name for name, value in model.named_parameters() if torch.equal(value, before[name])] == []
    assert torch.equal(digits.pixels, pixels)


def test_digits_are_normalised_with_their_own_mean(digits: Images) -> None:
    assert digits.pixels.mean().abs() < 0.01
    assert (digits.pixels.std() - 1).abs() < 0.01


def test_a_learning_rate_that_diverges_is_told(digits: Images) -> None:
    with pytest.raises(UserError, match=r"the loss is (nan|inf) after \d epochs: give a learning rate below 1e\+30"):
        train(ViT(**MODEL), digits, epochs=3, learning_rate=1e30, seed=0)


def test_images_without_labels_are_refused(digits: Images) -> None:
    images = Images(digits.pixels, None, digits.names)
    with pytest.raises(UserError, match="training needs labels"):
        train(ViT(**MODEL), images, epochs=1, learning_rate=1e-3, seed=0)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--data", "letters"], "--data letters cannot be trained on yet: give digits"),
        (["--epochs", "0"], "--epochs 0 trains nothing"),
        (["--lr", "nan"], "--lr nan is no learning rate"),
        (["--lr", "-1"], "--lr -1.0 is no learning rate"),
        (["--heads", "3"], "ViT's width 16 is not a multiple of its heads 3"),
        (["--patch", "3"], "ViT's image_size 8 is not a multiple of its patch_size 3"),
        (["--drop-path", "1"], "ViT's drop_path is 1.0"),
        (["--device", "abacus"], "device 'abacus' is not one of"),
    ],
)
def test_options_that_make_no_model_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], sentence: str
) -> None:
    assert run(tmp_path / "model.pt", *options) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {sentence}")
    assert "Traceback" not in said
    assert list(tmp_path.iterdir()) == []


def test_where_nothing_can_be_written_nothing_is_trained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "none" / "model.pt") == 2
    assert "is in a folder that does not exist" in capsys.readouterr().err
    assert run(tmp_path) == 2
    assert "is a folder: give the name of a file in it" in capsys.readouterr().err
    (tmp_path / "model.pt").write_text("mine")
    assert run(tmp_path / "model.pt") == 2
    assert "is there already: give another name, or --force" in capsys.readouterr().err
    assert (tmp_path / "model.pt").read_text() == "mine"

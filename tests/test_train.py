"""python -m vitfx.train: learns, writes what it says, the same for the same seed, and refuses what it cannot do."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path

import pytest
import torch

import vitfx.runs.train_files
import vitfx.support.progress
from tests.support.image_files import image_folder
from tests.support.train_runs import SMALL, history, logged, report, run, weights
from vitfx.images.splits import open_data
from vitfx.models.checkpoint import load_model
from vitfx.models.vit import ViT
from vitfx.train import main
from vitfx.training.config import read_config

DIGITS = read_config("digits").preprocess
FILES = {
    "best.pt", "last.pt", "history.json", "curves.png", "gradient_flow.png", "confusion.png", "confusion.csv",
    "classes.csv", "report.json",
}  # fmt: skip
# Every part of the recipe, as far as digits take it.
ALL = [
    "--set", "augmentation.flip=0.5", "--set", "augmentation.crop_scale=[0.6, 1]", "--set", "augmentation.rotation=10",
    "--set", "augmentation.noise=0.02", "--set", "augmentation.erasing=0.25", "--set", "augmentation.cutmix=1",
    "--set", "augmentation.mixup=0.2", "--set", "augmentation.mix=0.8", "--set", "training.average=0.9",
    "--dropout", "0.1", "--set", "model.attention_dropout=0.1", "--set", "training.flow_every=1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _drawn_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take longer than trainings as small as these."""
    if request.function is not test_a_training_leaves_its_files:
        monkeypatch.setattr(vitfx.runs.train_files, "has_matplotlib", lambda: False)


def test_a_training_leaves_its_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "deep" / "out"
    assert run(out, *ALL, "--precision", "bf16", epochs=2) == 0
    said = capsys.readouterr().out
    assert "of 359 held-out images are classified correctly by the last weights" in said
    assert "epoch 1 of 2: training loss" in said
    assert "device: cpu, " in said and "precision: bf16, as requested" in said
    assert said.splitlines()[-1] == f"next: python -m vitfx.prune {out}/last.pt"
    assert {path.name for path in out.iterdir()} == FILES
    for name in ("best.pt", "last.pt"):
        loaded = load_model(str(out / name))
        assert isinstance(loaded.module, ViT)
        assert loaded.preprocess == DIGITS
        assert loaded.classes == tuple("0123456789")
        assert loaded.data == "digits"
        assert loaded.module.positions.shape == (1, 5, 16)
    found, written = history(out), report(out)
    assert len(found["losses"]) == 2 * (1438 // 350)
    assert [one["number"] for one in found["epochs"]] == [1, 2]
    assert all(len(one["flow"]["mean"]) == len(found["layers"]) > 10 for one in found["epochs"])
    assert written["settings"]["training"]["batch"] == 350
    assert written["settings"]["precision"] == "bf16"
    assert written["last"]["images"] == 359
    assert {"cpu", "torch", "vitfx"} <= written["environment"].keys()
    assert len(written["data"]["training"]["fingerprint"]) == 64
    assert written["made_by"].startswith(f"python -m vitfx.train --data digits --out {out} --epochs 2")


def test_the_reported_accuracy_is_that_of_the_last_file(tmp_path: Path) -> None:
    assert run(tmp_path / "out", epochs=3) == 0
    loaded = load_model(str(tmp_path / "out" / "last.pt"))
    images = open_data("digits", loaded.preprocess, loaded.classes).evaluation.load()
    with torch.no_grad():
        right = (loaded.module(images.pixels).argmax(1) == images.labels).double().mean().item()
    assert report(tmp_path / "out")["last"]["accuracy"] == pytest.approx(right)
    best = max(history(tmp_path / "out")["epochs"], key=lambda one: one["accuracy"])
    assert report(tmp_path / "out")["best"] == {"epoch": best["number"], "accuracy": best["accuracy"]}


def test_a_file_as_out_gets_the_last_weights(tmp_path: Path) -> None:
    assert run(tmp_path / "model.pt") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.pt"]
    assert (tmp_path / "model.pt").read_bytes() == (tmp_path / "model" / "last.pt").read_bytes()


def test_the_same_command_makes_the_same_bytes_another_seed_others(tmp_path: Path) -> None:
    out = tmp_path / "out"
    found = []
    for _ in range(2):
        assert run(out, *ALL, "--seed", "3", "--force") == 0
        found.append((out / "last.pt").read_bytes())
    assert found[0] == found[1]
    assert run(tmp_path / "other", *ALL, "--seed", "4") == 0
    assert not torch.equal(
        weights(out / "last.pt")["head.weight"], weights(tmp_path / "other" / "last.pt")["head.weight"]
    )


def test_training_learns_and_moves_every_weight(tmp_path: Path) -> None:
    fast = ["--batch", "64", "--lr", "3e-3"]
    assert run(tmp_path / "none", "--batch", "64", "--lr", "1e-30", "--set", "training.final_lr=0", epochs=1) == 0
    assert run(tmp_path / "out", *fast, epochs=6) == 0
    found = history(tmp_path / "out")
    assert found["epochs"][-1]["train_loss"] < 0.9 * found["epochs"][0]["train_loss"]
    assert found["epochs"][-1]["accuracy"] > 0.5
    before, after = weights(tmp_path / "none" / "last.pt"), weights(tmp_path / "out" / "last.pt")
    assert [name for name in after if torch.equal(after[name], before[name])] == []


def test_fp16_goes_through_its_scaler(tmp_path: Path) -> None:
    assert run(tmp_path / "out", "--precision", "fp16", "--batch", "64", epochs=2) == 0
    found = history(tmp_path / "out")
    assert found["epochs"][1]["train_loss"] < found["epochs"][0]["train_loss"]


def test_images_in_folders_and_fine_tuning_from_a_checkpoint(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "photos", {"ant": 8, "bee": 8, "cat": 8})
    small = ["--batch", "6", "--image-size", "16", *SMALL, "--epochs", "1", "--set", "training.warm_up=0"]
    assert main(["--data", str(folder), "--out", str(tmp_path / "one"), *small]) == 0
    first = load_model(str(tmp_path / "one" / "best.pt"))
    assert first.classes == ("ant", "bee", "cat")
    assert first.preprocess.size == (16, 16)
    assert first.data == "photos"
    more = image_folder(tmp_path / "more", {"dog": 8, "eel": 8})
    tune = ["--batch", "4", "--epochs", "1", "--set", "training.warm_up=0", "--device", "cpu", "--lr", "1e-30"]
    init = ["--init", str(tmp_path / "one" / "last.pt")]
    still = ["--set", "training.final_lr=0", "--set", "training.weight_decay=0"]
    assert main(["--data", str(more), "--out", str(tmp_path / "two"), *tune, *still, *init]) == 0
    before, after = weights(tmp_path / "one" / "last.pt"), weights(tmp_path / "two" / "last.pt")
    assert {name for name in after if not torch.equal(after[name], before[name])} == {"head.weight", "head.bias"}
    assert load_model(str(tmp_path / "two" / "last.pt")).classes == ("dog", "eel")
    assert report(tmp_path / "two")["settings"]["model"]["image_size"] == 16
    # A size that is set is another thing than the one that the recipe happens to have.
    size = ["--set", "model.image_size=8"]
    assert main(["--data", str(more), "--out", str(tmp_path / "three"), *tune, *still, *init, *size]) == 0
    assert load_model(str(tmp_path / "three" / "last.pt")).preprocess.size == (8, 8)
    assert report(tmp_path / "three")["settings"]["model"]["image_size"] == 8


def test_without_matplotlib_it_says_so_and_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run(tmp_path / "out") == 0
    assert capsys.readouterr().out.count("curves are not drawn") == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {name for name in FILES if not name.endswith("png")}


def test_tensorboard_is_an_option(tmp_path: Path) -> None:
    assert run(tmp_path / "out", "--tensorboard", "--lr", "1e-2", "--set", "training.final_lr=0") == 0
    assert len(list((tmp_path / "out" / "tensorboard").iterdir())) == 1
    # Each step's own: half a cosine over four steps.
    rates = [0.005 * (1 + math.cos(math.pi * step / 4)) for step in range(4)]
    assert logged(tmp_path / "out", "train/learning rate") == [
        (step, pytest.approx(lr)) for step, lr in enumerate(rates)
    ]


def test_without_a_terminal_it_says_now_and_then_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(vitfx.support.progress, "_SECONDS", 0.0)
    assert run(tmp_path / "out", epochs=2) == 0
    assert re.findall(
        r"training steps: (\d of \d), (epoch \d of 2), loss \d\.\d{3}, \d+ images/s", capsys.readouterr().out
    ) == [(f"{step} of 8", f"epoch {1 + step // 5} of 2") for step in range(1, 8)]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--data", "letters"], "--data letters does not exist: give a folder of images, an .npz file, or digits"),
        (["--epochs", "0"], "training.epochs is 0: give 1 or more"),
        (["--lr", "nan"], "training.lr is nan"),
        (["--lr", "1e30", "--set", "training.clip=0", "--epochs", "3"], "the loss is "),
        (["--heads", "3"], "ViT's width 16 is not a multiple of its heads 3"),
        (["--patch", "3"], "ViT's image_size 8 is not a multiple of its patch_size 3"),
        (["--drop-path", "1"], "ViT's drop_path is 1.0"),
        (["--device", "abacus"], "device 'abacus' is not one of"),
        (["--batch", "1439"], "--batch is 1439, but there are 1438 images"),
        (["--arch", "timm:vit_tiny_patch16_224"], "--width is for vitfx's own ViT, trained from scratch"),
        (["--workers", "-1"], "--workers -1 is negative"),
        (["--save-seconds", "nan"], "--save-seconds nan is not a time"),
        (["--config", "none.toml"], "--config none.toml is neither"),
        (["--set", "training.epoch=1"], "digits has the unknown key training.epoch"),
    ],
)
def test_options_that_make_no_training_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], sentence: str
) -> None:
    assert run(tmp_path / "out", *options) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert said[0].startswith(f"error: {sentence}")
    assert not (tmp_path / "out" / "report.json").exists()


def test_images_without_classes_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = image_folder(tmp_path / "photos", {"ant": 8})
    assert main(["--data", str(folder / "ant"), "--out", str(tmp_path / "out")]) == 2
    assert "has no classes: give labelled images" in capsys.readouterr().err


def test_what_is_there_is_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes").write_text("mine")
    assert run(tmp_path / "mine") == 2
    assert "is not empty (it has notes)" in capsys.readouterr().err
    (tmp_path / "model.pt").write_text("mine")
    assert run(tmp_path / "model.pt") == 2
    assert "exists already: give another --out, or --force" in capsys.readouterr().err
    assert (tmp_path / "model.pt").read_text() == "mine"
    assert run(tmp_path / "mine", "--force") == 0
    assert (tmp_path / "mine" / "notes").exists()


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--help-all"])
    assert ended.value.code == 0
    said = capsys.readouterr().out
    for word in ("--config", "torchrun", "Ctrl-C", "kill -9", "tiny-imagenet.toml", "--init"):
        assert word in said

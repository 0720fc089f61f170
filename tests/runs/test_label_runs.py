"""Commands on images with several labels each, from a file: micro-F1 and mAP by scikit-learn, and a retraining."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, f1_score

from tests.support.prune_runs import GREY, SIZES, checkpoint, model, picture, report, run
from vitfx.images.splits import open_data
from vitfx.recover import main as recover

NAMES = ("cat", "dog", "owl")


def data(folder: Path) -> tuple[Path, Path]:
    """Images and their labels, which need not be right."""
    rows = np.random.default_rng(0).integers(0, 2, (60, 3))
    for index in range(60):
        picture(folder / "images" / f"{index:02}.png", index)
    lines = [f"{index:02}.png,{','.join(map(str, row))}" for index, row in enumerate(rows.tolist())]
    (folder / "labels.csv").write_text("\n".join(["file,cat,dog,owl", *lines]))
    return folder / "images", folder / "labels.csv"


def checked(folder: Path) -> Path:
    path = folder / "model.pt"
    return checkpoint(
        path, kwargs=SIZES | {"classes": 3}, state_dict=model(classes=3).state_dict(), classes=NAMES,
        data=str(folder / "images"),
    )  # fmt: skip


def test_several_labels_an_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images, labels = data(tmp_path)
    options = ["--labels", str(labels), "--remove", "0.3", "--method", "taylor", "--compensate", "mean"]
    assert run(checked(tmp_path), tmp_path / "out", *options) == 0
    assert "task labels: 3 numbers an image are taken for logits of labels" in capsys.readouterr().out.replace(
        "\n", " "
    )
    found = report(tmp_path / "out")
    test = open_data(str(images), GREY, NAMES, lambda: 3, labels).evaluation.load()
    with torch.no_grad():
        answers = model(classes=3)(test.pixels)
    assert found["baseline"]["accuracy"] == pytest.approx(f1_score(test.labels, answers > 0, average="micro"))
    precision = average_precision_score(test.labels, answers, average="macro")
    assert found["baseline"]["mean_average_precision"] == pytest.approx(precision)
    assert found["settings"]["labels"] == str(labels) and found["settings"]["task"] == "labels"
    text = (tmp_path / "out" / "report.md").read_text()
    assert "micro-F1" in text and "mAP" in text and "top-1" not in text


@pytest.mark.slow
def test_retraining_by_several_labels(tmp_path: Path) -> None:
    path, (_, labels) = checked(tmp_path), data(tmp_path)
    options = ["--labels", str(labels), "--remove", "0.3", "--method", "taylor", "--compensate", "mean"]
    assert run(path, tmp_path / "out", *options) == 0
    pruned = [str(tmp_path / "out" / "pruned.pt"), "--teacher", str(path), "--labels", str(labels)]
    more = ["--epochs", "2", "--loss", "both", "--device", "cpu", "--precision", "fp32", "--batch", "16"]
    assert recover([*pruned, *more, "--cache", str(tmp_path / "cache"), "--out", str(tmp_path / "re")]) == 0
    again = report(tmp_path / "re")
    assert again["models"][0]["accuracy"] == pytest.approx(report(tmp_path / "out")["baseline"]["accuracy"])
    assert again["settings"]["task"] == "labels" and again["settings"]["loss"] == "both"
    text = (tmp_path / "re" / "report.md").read_text()
    assert "micro-F1" in text and "Bernoulli KL" in text and "top-1" not in text

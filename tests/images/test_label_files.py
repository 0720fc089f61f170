"""vitfx.images.label_files: forms of files, names of images, and one sentence for what does not fit."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest

from tests.support.image_files import GREY, RGB, put
from vitfx.images.splits import Splits, open_data
from vitfx.support.errors import UserError

NAMES = ("a", "b", "c", "d")
WANTED = {"a": (1, 0, 1), "b": (0, 0, 0), "c": (0, 1, 0), "d": (1, 1, 1)}
"""Of the labels cat, dog and owl."""


def opened(
    folder: Path, text: str, classes: tuple[str, ...] | None = ("cat", "dog", "owl"), logits: int = 3, below: str = ""
) -> Splits:
    for seed, name in enumerate(NAMES):
        put(folder / "data" / below / f"{name}.png", seed)
    (folder / "labels.csv").write_text(text, encoding="utf-8", errors="surrogateescape")
    return open_data(str(folder / "data"), RGB, classes, lambda: logits, folder / "labels.csv")


def labels(splits: Splits) -> dict[str, object]:
    """Of each image, by its name without folders and ending."""
    sets = (splits.calibration, splits.evaluation)
    return {Path(name).stem: label for part in sets for name, label in zip(part.names, part.labels or (), strict=True)}


FORMS = {
    "columns": "file,cat,dog,owl\na.png,1,0,1\nb.png,0,0,0\nc.png,0,1,0\nd.png,1,1,1\n",
    "columns in another order": "owl?,x,owl,cat\nd.png,1,1,1\na.png,0,1,1\nc.png,1,0,0\nb.png,0,0,0\n".replace(
        "x", "dog"
    ),
    "floats and semicolons": "id;cat;dog;owl\na;1.0;0.0;1.0\nb;0.0;0.0;0.0\nc;0.0;1.0;0.0\nd;1.0;1.0;1.0\n",
    "lists": "a.png,cat,owl\nb.png\nc.png,dog\nd.png,owl,dog,cat\n",
    "lists with a header": "image,labels\na,cat|owl\nb,\nc,dog\nd,cat | dog | owl\n",
    "a line a label": "file\tlabel\na.png\tcat\na.png\towl\nb.png\t\nc.png\tdog\nd.png\tcat\nd.png\tdog\nd.png\towl\n",
    "mark of byte order": "\ufefffile,cat,dog,owl\r\na.png,1,0,1\r\nb.png,0,0,0\r\nc.png,0,1,0\r\nd.png,1,1,1\r\n",
    "paths": "./a.png,cat,owl\n./b.png\n./c.png,dog\n./d.png,cat,dog,owl\n",
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str, tmp_path: Path) -> None:
    splits = opened(tmp_path, FORMS[form])
    assert labels(splits) == WANTED and splits.classes == ("cat", "dog", "owl")
    assert splits.remarks == ()


def test_labels_of_the_logits_order(tmp_path: Path) -> None:
    splits = opened(tmp_path, FORMS["lists"], ("owl", "Cat", "dog"))
    assert labels(splits)["a"] == (1, 1, 0) and "without regard to case" in splits.description


def test_a_model_without_names(tmp_path: Path) -> None:
    splits = opened(tmp_path, FORMS["columns"], None)
    assert (
        labels(splits) == WANTED and "taken to be the classes in order, 0 'cat', 1 'dog', 2 'owl'" in splits.description
    )
    with pytest.raises(UserError, match="has 3 classes and the model 5 logits"):
        opened(tmp_path, FORMS["columns"], None, 5)


def test_one_label_each_is_a_class(tmp_path: Path) -> None:
    text = "file,label\na,cat\nb,owl\nc,cat\nd,dog\n"
    assert labels(opened(tmp_path, text, below="folder")) == {"a": 0, "b": 2, "c": 0, "d": 1}
    binary = "file,ill\na,1\nb,0\nc,0\nd,1\n"
    assert labels(opened(tmp_path, binary, None, 2, below="folder")) == {"a": 1, "b": 0, "c": 0, "d": 1}


def test_folders_normal_forms_and_the_same_name_twice(tmp_path: Path) -> None:
    for seed, name in enumerate(["x/é.png", "y/é.png"]):
        put(tmp_path / "data" / name, seed)
    text = unicodedata.normalize("NFD", "x/é.png,cat\ny/é.png,dog,owl\n")
    (tmp_path / "labels.csv").write_text(text)
    file = tmp_path / "labels.csv"
    splits = open_data(str(tmp_path / "data"), RGB, ("cat", "dog", "owl"), lambda: 3, file)
    assert {*(splits.calibration.labels or ()), *(splits.evaluation.labels or ())} == {(1, 0, 0), (0, 1, 1)}
    for ambiguous in ("é.png,cat\n", "other/é.png,cat\n"):
        file.write_text(ambiguous)
        with pytest.raises(UserError, match="does not say which"):
            open_data(str(tmp_path / "data"), RGB, ("cat", "dog", "owl"), lambda: 3, file)
    file.write_text("other/é.png,cat\nsome/é.png,dog,owl\n")
    with pytest.raises(UserError, match=r"which é\.png it means, one of several, and x/é\.png has no line"):
        open_data(str(tmp_path / "data"), RGB, ("cat", "dog", "owl"), lambda: 3, file)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("a,cat\nb,dog\nc,owl\n", "has no line for the image d.png: add one, with no label where it has none"),
        ("a,1,0,1\nb,0,0,0\nc,0,1,0\nd,1,1,1\n", "no header that names them"),
        ("file,cat,dog,owl\n", "has no line for an image of data"),
        ("a\nb\nc\nd\n", "has no labels"),
        ("", "has no labels"),
        ("a,cat\nb,cow\nc,owl\nd,dog\n", "the model does not know the class 'cow'"),
        (FORMS["columns"] + "a.png,0,0,0\n", "has two lines for a.png"),
    ],
)
def test_sentences(text: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence) as caught:
        opened(tmp_path, text)
    assert "\n" not in str(caught.value)


def test_rows_of_an_array(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).integers(0, 2, (20, 5))
    rows[:, 0] = 1
    np.savez(tmp_path / "d.npz", images=np.zeros((20, 8, 8), np.uint8), labels=rows)
    splits = open_data(str(tmp_path / "d.npz"), GREY, None, lambda: 5)
    found = {name: label for part in (splits.calibration, splits.evaluation)
             for name, label in zip(part.names, part.labels or (), strict=True)}  # fmt: skip
    assert [found[f"d/{index}"] for index in range(20)] == [tuple(row) for row in rows.tolist()]
    loaded = splits.calibration.sample(7, 0).load()
    assert loaded.labels is not None and loaded.labels.shape == (7, 5)
    assert len(splits.evaluation) == 4

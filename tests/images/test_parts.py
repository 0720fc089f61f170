"""Folders that divide a data set, by all the names that people give them, and classes that are named like them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.image_files import RGB, image_folder, refusal
from vitfx.images.splits import open_data

CLASSES = {"cat": 3, "dog": 3}


@pytest.mark.parametrize(
    ("training", "evaluation"),
    [
        ("Training", "Testing"),
        ("Train", "Val"),
        ("TRAIN", "TEST"),
        ("train", "valid"),
        ("training", "dev"),
        ("train_set", "validation_set"),
        ("trainset", "testset"),
        ("seg_train", "seg_test"),
        ("seg_train/seg_train", "seg_test/seg_test"),
        ("train2017", "val2017"),
        ("train-images", "test-images"),
        ("archive/train", "archive/test"),
        ("data/Training/Training", "data/Validation/Validation"),
    ],
)
def test_parts_are_no_classes(tmp_path: Path, training: str, evaluation: str) -> None:
    image_folder(tmp_path / training, CLASSES)
    image_folder(tmp_path / evaluation, CLASSES)
    splits = open_data(str(tmp_path), RGB)
    assert splits.classes == ("cat", "dog")
    assert (len(splits.calibration), len(splits.evaluation)) == (6, 6)
    assert splits.name == tmp_path.name
    assert "as the data set divides them" in splits.description
    parts = [path.removeprefix("archive/").removeprefix("data/") for path in (training, evaluation)]
    assert f"of {parts[0]} for calibration" in splits.description
    assert f"of {parts[1]} for evaluation" in splits.description


def test_val_goes_before_test_in_any_case(tmp_path: Path) -> None:
    for part in ("Train", "Valid", "Test"):
        image_folder(tmp_path / part, CLASSES)
    assert {name.split("/")[0] for name in open_data(str(tmp_path), RGB).evaluation.names} == {"Valid"}


def test_a_class_may_be_a_train(tmp_path: Path) -> None:
    image_folder(tmp_path, {"car": 3, "plane": 3, "train": 3})
    splits = open_data(str(tmp_path), RGB)
    assert splits.classes == ("car", "plane", "train")
    assert len(splits.calibration) + len(splits.evaluation) == 9
    image_folder(tmp_path / "vehicles" / "train", {"car": 3, "train": 3})
    image_folder(tmp_path / "vehicles" / "val", {"car": 3, "train": 3})
    assert open_data(str(tmp_path / "vehicles"), RGB).classes == ("car", "train")


@pytest.mark.parametrize("name", ["trainer", "testament", "validity", "contest", "train_station", "valley"])
def test_names_that_only_contain_such_a_word_are_classes(tmp_path: Path, name: str) -> None:
    image_folder(tmp_path, {name: 3, "other": 3})
    assert open_data(str(tmp_path), RGB).classes == tuple(sorted((name, "other")))


def test_what_can_not_be_told_is_refused(tmp_path: Path) -> None:
    for part in ("train_set", "training"):
        image_folder(tmp_path / "two" / part, CLASSES)
    assert "two folders for one part, train_set and training: name the right one train" in refusal(tmp_path / "two")


def test_other_folders_stand_beside_parts(tmp_path: Path) -> None:
    for part in ("train", "val", "annotations"):
        image_folder(tmp_path / part, CLASSES)
    splits = open_data(str(tmp_path), RGB)
    assert splits.classes == ("cat", "dog") and len(splits.calibration) == 6

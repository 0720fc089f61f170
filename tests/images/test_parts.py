"""Folders that divide a data set, by all the names that people give them, and classes that are named like them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.image_files import RGB, image_folder, put, refusal
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
        ("Training", "Validation"),
        ("training_set/training_set", "test_set/test_set"),
        ("TrainSet", "TestSet"),
        ("birds-train", "birds-eval"),
        ("archive/train", "archive/test"),
        ("data/Training/Training", "data/Validation/Validation"),
        ("archive/seg_train/seg_train", "archive/seg_test/seg_test"),
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


@pytest.mark.parametrize(
    ("folders", "expected"),
    [(("seg_train", "seg_test", "seg_pred"), "seg_test"), (("train", "val", "__MACOSX"), "val")],
)
def test_further_folders(tmp_path: Path, folders: tuple[str, ...], expected: str) -> None:
    for name in folders:
        image_folder(tmp_path / name, CLASSES)
    splits = open_data(str(tmp_path), RGB)
    assert splits.classes == ("cat", "dog") and {name.split("/")[0] for name in splits.evaluation.names} == {expected}


LOOK_ALIKE = "look like parts of a data set and not like classes"


@pytest.mark.parametrize(
    ("folders", "sentence"),
    [
        (("train1", "train2"), LOOK_ALIKE),
        (("Test", "Val"), LOOK_ALIKE),
        (("train_a", "test_b"), LOOK_ALIKE),
        (("Train", "Training", "Test"), "two folders for one part, Train and Training: name the right one train"),
        (("train", "Test", "testing"), "two folders for one part, Test and testing: name the right one test"),
    ],
)
@pytest.mark.parametrize("flat", [False, True])
def test_folders_that_all_look_like_parts(tmp_path: Path, folders: tuple[str, ...], sentence: str, flat: bool) -> None:
    for name in folders:
        image_folder(tmp_path, {name: 2}) if flat else image_folder(tmp_path / name, CLASSES)
    assert sentence in refusal(tmp_path)


@pytest.mark.parametrize(
    "names", [("bus", "train"), ("car", "test"), ("control", "Test"), ("bus", "train", "val_d_or")]
)
def test_classes_that_are_named_like_parts(tmp_path: Path, names: tuple[str, ...]) -> None:
    image_folder(tmp_path, dict.fromkeys(names, 2))
    assert open_data(str(tmp_path), RGB).classes == tuple(sorted(names))


def test_a_lone_part(tmp_path: Path) -> None:
    image_folder(tmp_path / "Training", CLASSES)
    assert open_data(str(tmp_path), RGB).classes == ("cat", "dog")
    image_folder(tmp_path, {"extra": 1})
    assert open_data(str(tmp_path), RGB).classes == ("cat", "dog")


@pytest.mark.parametrize("place", ["val", "val/images", "test", "Testing", "test/test"])
def test_evaluation_images_without_classes(tmp_path: Path, place: str) -> None:
    image_folder(tmp_path / ("Training" if place == "Testing" else "train"), CLASSES)
    put(tmp_path / place / "0.png", 0)
    splits = open_data(str(tmp_path), RGB)
    assert splits.calibration.has_labels and not splits.evaluation.has_labels
    assert [remark.startswith("top-1 is missing: the images of ") for remark in splits.remarks] == [True]
    assert splits.remarks[0] in splits.description


def test_images_without_classes(tmp_path: Path) -> None:
    for index in range(10):
        put(tmp_path / f"{index}.png", index)
    splits = open_data(str(tmp_path), RGB)
    assert splits.remarks == ("top-1 is missing: the images are not in class folders",)
    np.savez(tmp_path / "a.npz", images=np.zeros((9, 4, 4), np.uint8))
    assert open_data(str(tmp_path / "a.npz"), RGB).remarks == ("top-1 is missing: a has no labels",)

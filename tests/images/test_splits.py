"""open_data: every layout of folders and tar files, and every refusal."""

from __future__ import annotations

import io
import tarfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from tests.support.image_files import RGB, as_tars, image_folder, pairs, put, refusal, tiny_imagenet
from vitfx.images.preprocess import Preprocess
from vitfx.images.splits import open_data


def test_official_tiny_imagenet(tmp_path: Path) -> None:
    splits = open_data(str(tiny_imagenet(tmp_path / "tiny")), RGB)
    assert splits.classes == ("n01", "n02", "n03")
    assert (len(splits.calibration), len(splits.evaluation), splits.name) == (12, 6, "tiny")
    assert pairs(splits.calibration)["train/n02/images/n02_3.JPEG"] == 1
    assert pairs(splits.evaluation)["val/images/val_4.JPEG"] == 0
    assert "12 images of train" in splits.description and "6 of val" in splits.description


def test_tars_are_read_in_place_and_equal_folders(tmp_path: Path) -> None:
    folder = tiny_imagenet(tmp_path / "tiny")
    tars = as_tars(folder, tmp_path / "tars")
    unpacked, packed = open_data(str(folder), RGB), open_data(str(tars), RGB)
    for one, other in ((unpacked.calibration, packed.calibration), (unpacked.evaluation, packed.evaluation)):
        assert one.names == other.names and one.labels == other.labels
        assert torch.equal(one.load().pixels, other.load().pixels)
        assert torch.equal(other.load().pixels, other.load().pixels)
        assert one.fingerprint() == other.fingerprint()
    assert sorted(path.name for path in tars.iterdir()) == ["train-4.tar", "val.tar"]


def test_tar_without_a_folder_of_its_parts_name(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "plain", {"a": 2, "b": 2})
    (tmp_path / "set").mkdir()
    for part in ("train", "val"):
        with tarfile.open(tmp_path / "set" / f"{part}.tar", "w") as tar:
            tar.add(folder, ".")
    splits = open_data(str(tmp_path / "set"), RGB)
    assert splits.classes == ("a", "b") and len(splits.calibration) == len(splits.evaluation) == 4


@pytest.mark.parametrize("part", ["val", "valid", "validation", "test"])
def test_train_and_an_evaluation_folder(tmp_path: Path, part: str) -> None:
    image_folder(tmp_path / "train", {"a": 3, "b": 3})
    image_folder(tmp_path / part, {"b": 2})
    splits = open_data(str(tmp_path), RGB, classes=("b", "a"))
    assert pairs(splits.evaluation) == {f"{part}/b/b_0.png": 0, f"{part}/b/b_1.png": 0}
    assert pairs(splits.calibration)["train/a/a_0.png"] == 1


def test_cleaned_layout_prefers_val_to_an_unlabelled_test(tmp_path: Path) -> None:
    for part in ("train", "val"):
        image_folder(tmp_path / part, {"a": 2, "b": 2})
    put(tmp_path / "test" / "images" / "test_0.png", 1)
    assert {name.split("/")[0] for name in open_data(str(tmp_path), RGB).evaluation.names} == {"val"}


def test_test_images_without_classes_have_no_labels(tmp_path: Path) -> None:
    image_folder(tmp_path / "train", {"a": 2, "b": 2})
    put(tmp_path / "test" / "images" / "test_0.png", 1)
    splits = open_data(str(tmp_path), RGB)
    assert splits.calibration.has_labels and not splits.evaluation.has_labels
    assert splits.evaluation.load().labels is None


@pytest.mark.parametrize("root", ["", "train", "val"])
def test_single_image_folder_is_split(tmp_path: Path, root: str) -> None:
    image_folder(tmp_path / root, {"a": 10, "b": 5, "c": 1})
    splits = open_data(str(tmp_path), RGB)
    assert "20 %" in splits.description
    assert Counter(splits.evaluation.labels) == {0: 2, 1: 1}
    assert Counter(splits.calibration.labels) == {0: 8, 1: 4, 2: 1}
    assert not set(splits.calibration.names) & set(splits.evaluation.names)
    assert open_data(str(tmp_path), RGB).evaluation.names == splits.evaluation.names


def test_flat_folder_has_no_labels(tmp_path: Path) -> None:
    for index in range(10):
        put(tmp_path / f"{index}.jpg", index)
    (tmp_path / "._0.jpg").write_bytes(b"the system's")
    put(tmp_path / ".thumbnails" / "0.jpg", 0)
    (tmp_path / "notes.txt").write_text("not an image")
    splits = open_data(str(tmp_path), RGB, classes=("a", "b"))
    assert (len(splits.calibration), len(splits.evaluation)) == (8, 2)
    assert splits.calibration.labels is None and not splits.calibration.has_labels
    assert splits.classes == ("a", "b") and open_data(str(tmp_path), RGB).classes is None


def test_order_does_not_come_from_the_file_system(tmp_path: Path) -> None:
    for root, order in (("one", range(10)), ("two", reversed(range(10)))):
        for index in order:
            put(tmp_path / root / "a" / f"{index}.png", index)
    one, two = (open_data(str(tmp_path / root), RGB).calibration for root in ("one", "two"))
    assert list(one.names) == sorted(one.names)
    assert one.sample(5, 3).names == two.sample(5, 3).names
    assert one.fingerprint() == two.fingerprint()


def test_a_data_sets_name_is_no_path() -> None:
    sentence = refusal("tiny-imagenet-200")
    assert "model names the data set 'tiny-imagenet-200'" in sentence and "`data`" in sentence


def test_missing_or_unusable_paths(tmp_path: Path) -> None:
    assert "missing/set" in refusal(tmp_path / "missing" / "set")
    assert "absent.npz" in refusal(tmp_path / "absent.npz")
    assert "empty" in refusal("")
    (tmp_path / "notes.txt").write_text("no images")
    assert "neither a folder nor an .npz" in refusal(tmp_path / "notes.txt")
    assert "no images are in" in refusal(tmp_path)
    (tmp_path / "val").mkdir()
    put(tmp_path / "train" / "a" / "0.png", 0)
    assert refusal(tmp_path).startswith(f"no images are in {tmp_path / 'val'}")


def test_too_few_images_to_split(tmp_path: Path) -> None:
    image_folder(tmp_path, {"a": 1, "b": 1})
    assert "too few" in refusal(tmp_path)


def test_broken_tars(tmp_path: Path) -> None:
    whole = as_tars(tiny_imagenet(tmp_path / "tiny"), tmp_path / "tars") / "train-4.tar"
    whole.write_bytes(whole.read_bytes()[:5000])
    assert "train-4.tar is not a whole, uncompressed tar" in refusal(whole.parent)
    (tmp_path / "train.tar").write_bytes(b"not a tar file" * 100)
    assert "train.tar is not a whole, uncompressed tar" in refusal(tmp_path)
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz"):
        pass
    (tmp_path / "train.tar").write_bytes(packed.getvalue())
    assert "train.tar is not a whole, uncompressed tar" in refusal(tmp_path)


@pytest.mark.parametrize("text, expected", [("val_0.JPEG\tn02\n", "no line for images/val_1.JPEG"), ("x", "line 1")])
def test_broken_annotations(tmp_path: Path, text: str, expected: str) -> None:
    (tiny_imagenet(tmp_path) / "val" / "val_annotations.txt").write_text(text)
    assert expected in refusal(tmp_path)


def test_classes_unknown_to_the_model(tmp_path: Path) -> None:
    image_folder(tmp_path, {"a": 2, "zebra": 2})
    # As many classes as the model has, and still not its own.
    assert "'zebra'" in refusal(tmp_path, classes=("a", "b"))
    assert "two classes named 'a'" in refusal(tmp_path, classes=("a", "a", "zebra"))
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 4, 4), np.uint8), labels=[0, 1])
    assert "'0'" in refusal(tmp_path / "a.npz", classes=("n01", "n02"))


def test_channels_that_image_files_lack(tmp_path: Path) -> None:
    put(tmp_path / "0.png", 0)
    assert "2 channels" in refusal(tmp_path, Preprocess((8, 8), mean=(0.5, 0.5), std=(1.0, 1.0)))


def test_real_tiny_imagenet(shared: Path) -> None:
    root = shared / "data" / "tiny-imagenet-200"
    splits = open_data(str(root), Preprocess((112, 112)))
    assert (len(splits.calibration), len(splits.evaluation)) == (30_000, 10_000)
    assert splits.classes == tuple(sorted((root / "wnids.txt").read_text().split()))
    assert set(Counter(splits.calibration.labels).values()) == {150}
    assert set(Counter(splits.evaluation.labels).values()) == {50}
    assert set(Counter(splits.calibration.sample(200, 0).labels).values()) == {1}
    with tarfile.open(root / "val.tar") as tar:
        name = "tiny-imagenet-200/val/images/val_4711.JPEG"
        lines = tar.extractfile("tiny-imagenet-200/val/val_annotations.txt").read().decode().splitlines()
        expected = F.pil_to_tensor(Image.open(tar.extractfile(name)).convert("RGB"))
    index = splits.evaluation.names.index("val/images/val_4711.JPEG")
    assert torch.equal(splits.evaluation.sources[index].decode(3), expected)
    wnid = next(line.split("\t")[1] for line in lines if line.startswith("val_4711.JPEG"))
    assert splits.classes[splits.evaluation.labels[index]] == wnid
    batches = splits.evaluation.batches(64)
    for start in (0, 64):
        batch = next(batches)
        assert batch.pixels.shape == (64, 3, 112, 112) and batch.skipped == 0
        assert batch.labels.tolist() == list(splits.evaluation.labels[start : start + 64])
        assert 0.5 < batch.pixels.std() < 2

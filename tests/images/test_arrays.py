"""Data sets that are arrays: .npz files and digits."""

from __future__ import annotations

import re
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from tests.support.image_files import GREY, RGB, refusal
from vitfx.images.splits import open_data


def test_a_folder_named_digits_is_told_from_the_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "./digits" not in open_data("digits", GREY).description
    Path("digits").mkdir()
    assert open_data("digits", GREY).description.endswith("and the folder of that name here is ./digits")


def test_digits() -> None:
    splits = open_data("digits", GREY)
    assert splits.classes == tuple("0123456789") and splits.name == "digits"
    names = splits.calibration.names + splits.evaluation.names
    assert sorted(names, key=lambda name: int(name[7:])) == [f"digits/{index}" for index in range(1797)]
    assert abs(len(splits.evaluation) - 0.2 * 1797) < 5
    assert {count // 5 for count in Counter(splits.evaluation.labels).values()} == {7}  # 35 to 39 of each
    first = splits.calibration.sources[0].decode(1)
    from sklearn.datasets import load_digits

    original = load_digits().images[int(splits.calibration.names[0][7:])]
    assert first.shape == (1, 8, 8) and first.dtype == torch.uint8
    assert np.abs(first[0].numpy() / 255 - original / 16).max() <= 0.5 / 255
    assert open_data("digits", RGB).evaluation.sample(3, 0).load().pixels.shape == (3, 3, 16, 16)


@pytest.mark.parametrize("shape", [(20, 6, 7), (20, 6, 7, 1), (20, 1, 6, 7), (20, 6, 7, 3), (20, 3, 6, 7)])
def test_npz_shapes(tmp_path: Path, shape: tuple[int, ...]) -> None:
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.savez(tmp_path / "set.npz", images=images, labels=np.arange(20) % 4)
    splits = open_data(str(tmp_path / "set.npz"), RGB)
    assert splits.classes == ("0", "1", "2", "3") and len(splits.evaluation) == 4
    index = int(splits.calibration.names[0].split("/")[1])
    expected = torch.from_numpy(images[index])
    if shape[-1] in (1, 3):
        expected = expected.permute(2, 0, 1)
    elif len(shape) == 3:
        expected = expected[None]
    assert torch.equal(splits.calibration.sources[0].decode(3), expected.expand(3, 6, 7))
    assert splits.calibration.labels is not None and splits.calibration.labels[0] == index % 4


def test_npz_channels_follow_the_model(tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 4, 6, 3), dtype=np.uint8)
    np.savez(tmp_path / "a.npz", images=images)
    grey = open_data(str(tmp_path / "a.npz"), GREY)
    assert grey.calibration.labels is None
    chosen = images[int(grey.calibration.names[0].split("/")[1])]
    expected = F.rgb_to_grayscale(torch.from_numpy(chosen).permute(2, 0, 1))
    assert torch.equal(grey.calibration.sources[0].decode(1), expected)
    # Four sides of 4 could be channels too: the model's own number decides.
    assert open_data(str(tmp_path / "a.npz"), RGB).calibration.sources[0].decode(3).shape == (3, 4, 6)


def test_npz_floats_and_class_names(tmp_path: Path) -> None:
    images = np.random.default_rng(0).random((6, 5, 5)).astype(np.float32)
    np.savez(tmp_path / "a.npz", images=images, labels=np.array(["cat", "ant"] * 3))
    splits = open_data(str(tmp_path / "a.npz"), GREY)
    assert splits.classes == ("ant", "cat")
    index = int(splits.evaluation.names[0].split("/")[1])
    decoded = splits.evaluation.sources[0].decode(1)[0].numpy()
    assert np.abs(decoded / 255 - images[index]).max() <= 0.51 / 255
    assert open_data(str(tmp_path / "a.npz"), GREY, ("cat", "ant")).evaluation.labels != splits.evaluation.labels


@pytest.mark.parametrize(
    "arrays, expected",
    [
        ({"pictures": np.zeros(3)}, "holds pictures and no array named images"),
        ({"images": np.zeros((4, 4), np.uint8)}, "shape (4, 4)"),
        ({"images": np.zeros((4, 0, 4), np.uint8)}, "shape (4, 0, 4)"),
        ({"images": np.zeros((4, 5, 6, 7), np.uint8)}, "takes 3 channels"),
        ({"images": np.zeros((4, 3, 9, 3), np.uint8)}, "first or last"),
        ({"images": np.zeros((0, 4, 4), np.uint8)}, "empty"),
        ({"images": np.zeros((4, 4, 4), np.int64)}, "type int64"),
        ({"images": np.full((4, 4, 4), 1.5)}, "1.5"),
        ({"images": np.full((4, 4, 4), np.nan)}, "nan"),
        ({"images": np.array([None] * 4)}, "not an .npz file of plain arrays"),
        ({"images": np.zeros((4, 4, 4), np.uint8), "labels": np.arange(3)}, "for 4 images"),
        ({"images": np.zeros((4, 4, 4), np.uint8), "labels": np.zeros(4)}, "type float64"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": [-1, 0]}, "from -1 to 0"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": [1, 10**12]}, "to 1000000000000"),
    ],
)
def test_npz_refusals(tmp_path: Path, arrays: dict[str, np.ndarray], expected: str) -> None:
    np.savez(tmp_path / "a.npz", **arrays)
    assert expected in refusal(tmp_path / "a.npz")


def test_npz_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez_compressed(path, images=np.random.default_rng(0).integers(0, 256, (9, 9, 9), dtype=np.uint8))
    for broken in (path.read_bytes()[:300], b"text", b""):
        path.write_bytes(broken)
        assert "not an .npz file of plain arrays" in refusal(path)
    with path.open("wb") as file:
        np.save(file, np.zeros((3, 4, 4), np.uint8))
    assert "not an .npz file of plain arrays" in refusal(path)


def test_members_that_are_no_arrays(tmp_path: Path) -> None:
    path, images = tmp_path / "a.npz", np.zeros((2, 4, 4), np.uint8)
    np.savez(tmp_path / "a.npz", images=images)
    for name, contents, why in (
        ("images", b"text", "images of .*a.npz is no array: write it with numpy.savez"),
        ("labels.npy", b"\x93NUMPY\x01\x00\x06\x00{'a':\n", "is not an .npz file of plain arrays"),
    ):
        np.savez(path, images=images)
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, contents)
        assert re.search(why, refusal(path))


def test_labels_that_are_no_text(tmp_path: Path) -> None:
    labels = np.frombuffer(np.array([0x110000, 65], "<u4").tobytes(), "<U1")
    np.savez(tmp_path / "a.npz", images=np.zeros((2, 4, 4), np.uint8), labels=labels)
    assert "hold what is no text" in refusal(tmp_path / "a.npz")

"""Small data sets of noise that the tests of data write into their folders."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vitfx.images.preprocess import Preprocess
from vitfx.images.splits import ImageSet, open_data
from vitfx.support.errors import UserError

RGB = Preprocess((16, 16))
GREY = Preprocess((8, 8), mean=(0.5,), std=(0.5,))
WNIDS = ("n02", "n01", "n03")


def picture(seed: int, mode: str = "RGB", size: tuple[int, int] = (10, 12)) -> Image.Image:
    """Noise that compresses badly, so that a shortened file lacks pixels; size is (width, height)."""
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


def put(path: Path, seed: int, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed, mode).save(path)


def image_folder(root: Path, counts: dict[str, int]) -> Path:
    for name, count in counts.items():
        for index in range(count):
            put(root / name / f"{name}_{index}.png", seed=index)
    return root


def tiny_imagenet(root: Path) -> Path:
    """The official layout, with 4 training and 2 validation images of each of 3 classes."""
    lines = []
    for number, wnid in enumerate(WNIDS):
        for index in range(4):
            put(root / "train" / wnid / "images" / f"{wnid}_{index}.JPEG", 10 * number + index)
        (root / "train" / wnid / f"{wnid}_boxes.txt").write_text("n_0.JPEG\t0\t0\t1\t1\n")
        for index in (number, number + 3):
            put(root / "val" / "images" / f"val_{index}.JPEG", 100 + index)
            lines.append(f"val_{index}.JPEG\t{wnid}\t0\t0\t9\t9\n")
    (root / "val" / "val_annotations.txt").write_text("".join(lines))
    (root / "wnids.txt").write_text("\n".join(WNIDS))
    return root


def as_tars(folder: Path, root: Path) -> Path:
    root.mkdir()
    for part, name in (("train", "train-4.tar"), ("val", "val.tar")):
        with tarfile.open(root / name, "w") as tar:
            tar.add(folder / part, f"tiny-imagenet-200/{part}")
    return root


def refusal(spec: str | Path, preprocess: Preprocess = RGB, classes: tuple[str, ...] | None = None) -> str:
    """The sentence with which a data set is refused."""
    with pytest.raises(UserError) as caught:
        open_data(str(spec), preprocess, classes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def damaged(root: Path, good: int, bad: list[bytes]) -> ImageSet:
    """`good` images with broken ones between and after them, all in one set."""
    for index in range(good):
        put(root / "train" / "a" / f"{index}.png", index)
    for index, data in enumerate(bad):
        (root / "train" / "a").mkdir(parents=True, exist_ok=True)
        (root / "train" / "a" / f"{index}_broken.png").write_bytes(data)
        (root / "train" / "a" / f"z{index}_broken.jpg").write_bytes(data)
    put(root / "val" / "a" / "0.png", 0)
    return open_data(str(root), RGB).calibration


def pairs(images: ImageSet) -> dict[str, int]:
    assert images.labels is not None
    return dict(zip(images.names, images.labels, strict=True))

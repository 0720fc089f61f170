"""ImageSet: sampling, loading, fingerprints."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.support.image_files import GREY, RGB, damaged, pairs, picture
from vitfx.images.preprocess import Preprocess
from vitfx.images.sources import ArrayImage
from vitfx.images.splits import ImageSet, open_data
from vitfx.support.errors import UserError


@pytest.mark.parametrize("batch_size", [1, 2, 4, 100])
def test_batches_add_up_to_the_set(tmp_path: Path, batch_size: int) -> None:
    images = damaged(tmp_path, 5, [b"text", b""])
    loaded, batches = images.load(), list(images.batches(batch_size))
    assert sum(batch.skipped for batch in batches) == loaded.skipped == 4
    assert sum((batch.names for batch in batches), ()) == loaded.names
    assert torch.equal(torch.cat([batch.pixels for batch in batches]), loaded.pixels)
    assert all(0 < len(batch) <= batch_size for batch in batches)


def test_all_images_corrupt(tmp_path: Path) -> None:
    images = damaged(tmp_path, 0, [b"text"])
    with pytest.raises(UserError, match="all 2 images are corrupt"):
        images.load()
    with pytest.raises(UserError, match="all 2 images are corrupt"):
        list(images.batches(2))


def test_image_that_went_away(tmp_path: Path) -> None:
    images = damaged(tmp_path, 2, [])
    (tmp_path / "train" / "a" / "0.png").unlink()
    with pytest.raises(UserError, match=r"0\.png can't be read"):
        images.load()


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear", "nearest"])
def test_batched_preprocessing_equals_each_images_own(tmp_path: Path, interpolation: str) -> None:
    for index in range(12):
        path = tmp_path / f"{index:02}.png"
        picture(index, size=(30, 20) if index % 3 else (20, 30)).save(path)
    preprocess = Preprocess((16, 24), interpolation)
    images = open_data(str(tmp_path), preprocess).calibration
    one_by_one = torch.stack([preprocess(source.decode(3)) for source in images.sources])
    assert torch.equal(images.load().pixels, one_by_one)


def test_progress_reaches_the_end(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    damaged(tmp_path, 3, [b""]).load(lambda done, total: seen.append((done, total)))
    assert seen[-1] == (5, 5)


def in_memory(labels: list[int] | None, count: int = 0) -> ImageSet:
    count = count if labels is None else len(labels)
    sources = tuple(ArrayImage(np.full((1, 2, 2), index % 256, np.uint8)) for index in range(count))
    names = tuple(f"set/{index}" for index in range(count))
    return ImageSet(names, sources, None if labels is None else tuple(labels), GREY)


LABELS = st.lists(st.integers(0, 5), min_size=1, max_size=60)


@given(LABELS, st.integers(0, 2**40), st.data())
def test_samples_are_balanced_and_repeat_nothing(labels: list[int], seed: int, data: st.DataObject) -> None:
    images = in_memory(labels)
    count = data.draw(st.integers(1, len(labels)))
    sample = images.sample(count, seed)
    assert len(set(sample.names)) == len(sample) == count
    assert sample.labels is not None
    assert all(pairs(images)[name] == label for name, label in pairs(sample).items())
    taken, there = Counter(sample.labels), Counter(labels)
    most = max(taken.values())
    # A class falls behind by more than one only where it has no more images.
    assert all(taken[label] >= most - 1 or taken[label] == there[label] for label in there)
    assert images.sample(count, seed).names == sample.names
    assert images.sample(len(labels), seed).names[:count] == sample.names


@given(LABELS, st.integers(0, 9), st.randoms(use_true_random=False))
def test_samples_do_not_depend_on_order(labels: list[int], seed: int, rng: random.Random) -> None:
    images = in_memory(labels)
    order = list(range(len(labels)))
    rng.shuffle(order)
    count = (len(labels) + 1) // 2
    assert images.subset(order).sample(count, seed).names == images.sample(count, seed).names


def test_samples_differ_with_the_seed_and_need_no_labels() -> None:
    images = in_memory(None, 50)
    first, second = images.sample(20, 0), images.sample(20, 1)
    assert first.labels is None and set(first.names) != set(second.names)


@pytest.mark.parametrize("count", [-1, 0, 6])
def test_more_samples_than_there_are_or_none(count: int) -> None:
    with pytest.raises(UserError, match=f"can't sample {count} of 5 images"):
        in_memory([0] * 5).sample(count, 0)


def test_samples_leave_the_global_random_state_alone() -> None:
    before = torch.get_rng_state()
    in_memory([0, 1] * 9).sample(5, 3)
    assert torch.equal(before, torch.get_rng_state())


def test_fingerprint_sees_names_labels_pixels_and_preprocessing() -> None:
    base = in_memory([0, 1, 0])
    repainted = (*base.sources[:2], ArrayImage(np.zeros((1, 2, 2), np.uint8)))
    others = [
        ImageSet(("x", *base.names[1:]), base.sources, base.labels, GREY),
        ImageSet(base.names, base.sources, (0, 1, 1), GREY),
        ImageSet(base.names, base.sources, None, GREY),
        ImageSet(base.names, repainted, base.labels, GREY),
        ImageSet(base.names, base.sources, base.labels, RGB),
        base.subset([1, 0, 2]),
    ]
    fingerprints = {images.fingerprint() for images in (base, *others)}
    assert len(fingerprints) == 7 and base.fingerprint() == in_memory([0, 1, 0]).fingerprint()

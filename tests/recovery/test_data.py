"""vitfx.recovery.data: disjoint parts, mirror images in turn, the same batches from any step on, no labels needed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.support.prune_runs import DIGITS, GREY
from tests.support.recover_runs import CPU, data, npz
from vitfx.images.splits import open_data
from vitfx.recovery.data import load, open_recover_data
from vitfx.support.errors import UserError
from vitfx.support.progress import Silent


def test_parts_are_disjoint_and_the_whole(tmp_path: Path) -> None:
    found = data(tmp_path)
    splits = open_data(str(npz(tmp_path)), GREY, DIGITS)
    whole = splits.calibration.load()
    assert len(found.held_out) == len(whole) // 10
    positions = torch.cat([found.train.positions, found.held_out.positions])
    assert sorted(positions.tolist()) == list(range(len(whole)))
    for part in (found.train, found.held_out):
        pixels = found.preprocess(part.rows(torch.arange(len(part))))
        torch.testing.assert_close(pixels, whole.pixels[part.positions])
        assert torch.equal(part.labels, whole.labels[part.positions])


def test_every_image_and_its_mirror_image_in_turn(tmp_path: Path) -> None:
    found = data(tmp_path, 40)
    count = len(found.train)
    plain = found.preprocess(found.train.rows(torch.arange(count)))
    batches = list(load(found, "flip", count, 2, 0, 0, CPU))
    seen = torch.cat([batch.places for batch in batches])
    assert sorted(seen.tolist()) == list(range(2 * count))
    for batch in batches:
        assert 0 < int((batch.places >= count).sum()) < count
        for image, label, place in zip(batch.images, batch.labels, batch.places.tolist(), strict=True):
            wanted = plain[place % count]
            torch.testing.assert_close(image, wanted.flip(-1) if place >= count else wanted)
            assert label == found.train.labels[place % count]


@pytest.mark.parametrize("augment", ["none", "flip", "crop"])
def test_batches_from_the_middle_on(augment: str, tmp_path: Path) -> None:
    found = data(tmp_path, 40)
    whole = list(load(found, augment, 7, 3, 5, 0, CPU))
    rest = list(load(found, augment, 7, 3, 5, 4, CPU))
    assert len(rest) == len(whole) - 4 > 0
    assert all(torch.equal(one.images, other.images) for one, other in zip(rest, whole[4:], strict=True))
    other = list(load(found, augment, 7, 3, 6, 0, CPU))
    assert not torch.equal(other[0].images, whole[0].images)
    assert (whole[0].places is None) == (augment == "crop")


def test_images_without_labels_and_few_of_many(tmp_path: Path) -> None:
    found = data(tmp_path, labelled=False)
    assert not found.labelled
    assert len(found.train) > 0
    images = open_data(str(npz(tmp_path)), GREY, DIGITS).calibration
    few = open_recover_data(images, tmp_path, Silent(), held_out=20, samples=30, seed=0)
    assert len(few.train) + len(few.held_out) == 30
    other = open_recover_data(images, tmp_path, Silent(), held_out=20, samples=30, seed=1)
    assert few.fingerprint != other.fingerprint


def test_too_few_images(tmp_path: Path) -> None:
    images = open_data(str(npz(tmp_path)), GREY, DIGITS).calibration
    with pytest.raises(UserError, match="3 images are too few to retrain on: give 4 or more"):
        open_recover_data(images, tmp_path, Silent(), held_out=20, samples=3, seed=0)

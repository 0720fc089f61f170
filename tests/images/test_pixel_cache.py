"""vitfx.images.pixel_cache: the same pixels from memory and from the disk, found again, renewed when they must be."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support.image_files import RGB, damaged, put, tiny_imagenet
from vitfx.images.pixel_cache import Pixels, default_cache, open_pixels
from vitfx.images.splits import Images, ImageSet, open_data
from vitfx.support.errors import UserError


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    return open_data(str(tiny_imagenet(tmp_path / "tiny")), RGB).calibration


def on_disk(images: ImageSet, folder: Path) -> Pixels:
    return open_pixels(images, (16, 16), folder, in_memory=0)


def test_pixels_are_those_that_preprocess_makes(images: ImageSet, tmp_path: Path) -> None:
    loaded = images.load()
    for pixels in (open_pixels(images, (16, 16), tmp_path / "cache"), on_disk(images, tmp_path / "cache")):
        assert pixels.shape == (12, 3, 16, 16)
        rows = pixels.rows(torch.arange(12))
        assert rows.dtype == torch.uint8
        assert torch.equal(RGB(rows), loaded.pixels)
        assert torch.equal(pixels.labels, loaded.labels)
        assert torch.equal(pixels.rows(torch.tensor([7, 2])), rows[[7, 2]])
    assert (pixels.memory is None) != (pixels.path is None)


def test_few_images_stay_in_memory(images: ImageSet, tmp_path: Path) -> None:
    assert open_pixels(images, (16, 16), tmp_path / "cache").memory is not None
    assert not (tmp_path / "cache").exists()


def test_what_was_decoded_is_found_again(images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = on_disk(images, tmp_path / "cache")
    monkeypatch.setattr(ImageSet, "batches", lambda *_: pytest.fail("decoded again"))
    second = on_disk(images, tmp_path / "cache")
    assert second.path == first.path
    assert second.fingerprint == first.fingerprint
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [first.path.parent.name]


def test_another_image_another_size_or_a_damaged_file_is_decoded_anew(images: ImageSet, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = on_disk(images, cache)
    rows = first.rows(torch.arange(12))
    assert open_pixels(images, (8, 8), cache, in_memory=0).path != first.path
    first.path.write_bytes(first.path.read_bytes()[:-1])
    assert torch.equal(on_disk(images, cache).rows(torch.arange(12)), rows)
    put(images.sources[0].path, 99)
    changed = on_disk(images, cache)
    assert changed.path != first.path
    assert changed.fingerprint != first.fingerprint
    assert not torch.equal(changed.rows(torch.tensor([0])), rows[:1])


def test_labels_are_in_the_fingerprint_and_not_in_the_pixels(images: ImageSet, tmp_path: Path) -> None:
    first = on_disk(images, tmp_path / "cache")
    other = on_disk(ImageSet(images.names, images.sources, (0,) * 12, RGB), tmp_path / "cache")
    assert other.path == first.path
    assert other.fingerprint != first.fingerprint
    assert not other.labels.any()


def test_corrupt_images_are_left_out_with_their_labels(tmp_path: Path) -> None:
    images = damaged(tmp_path, 3, [b"", b"\x89PNG broken"])
    pixels = on_disk(images, tmp_path / "cache")
    assert (len(pixels), pixels.skipped, len(pixels.labels)) == (3, 4, 3)
    assert torch.equal(RGB(pixels.rows(torch.arange(3))), images.load().pixels)


def test_what_a_killed_run_left_goes_after_a_day(images: ImageSet, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    name = on_disk(images, cache).path.parent.name
    old, young = cache / f".{name}.1.partial", cache / f".{name}.2.partial"
    for folder in (old, young):
        folder.mkdir()
    os.utime(old, (0, 0))
    (cache / name / "index.json").unlink()
    on_disk(images, cache)
    assert not old.exists()
    assert young.exists()


def test_what_a_process_of_the_same_number_left_is_not_in_the_way(images: ImageSet, tmp_path: Path) -> None:
    """In containers numbers repeat."""
    name = on_disk(images, tmp_path / "first").path.parent.name
    left = tmp_path / "cache" / f".{name}.{os.getpid()}.partial"
    left.mkdir(parents=True)
    assert len(on_disk(images, tmp_path / "cache")) == 12
    assert left.exists()


def test_of_two_runs_the_later_leaves_the_entry_that_the_first_reads(
    images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, batches = tmp_path / "cache", ImageSet.batches
    first: list[tuple[Path, int]] = []

    def overtaken(plain: ImageSet, size: int) -> Iterator[Images]:
        monkeypatch.setattr(ImageSet, "batches", batches)
        path = on_disk(images, cache).path
        first.append((path, path.stat().st_ino))
        yield from batches(plain, size)

    monkeypatch.setattr(ImageSet, "batches", overtaken)
    later = on_disk(images, cache).path
    assert [(later, later.stat().st_ino)] == first
    assert [one.name for one in cache.iterdir()] == [later.parent.name]


def test_where_nothing_can_be_kept_it_is_told(images: ImageSet, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"can't be written .* another place with `cache`"):
        on_disk(images, tmp_path / "file" / "cache")
    with pytest.raises(UserError, match="training needs labels"):
        on_disk(ImageSet(images.names, images.sources, None, RGB), tmp_path)


def test_the_cache_is_where_the_system_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "vitfx"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache" / "vitfx"


def test_pixels_lie_in_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a source, they would be read from a file named None."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "None").write_bytes(bytes(12))
    labels, memory = torch.zeros(1, dtype=torch.int64), torch.zeros(1, 3, 2, 2, dtype=torch.uint8)
    for wrong in ((None, None), (memory, tmp_path / "None")):
        with pytest.raises(ValueError, match="give one of the two"):
            Pixels((1, 3, 2, 2), labels, 0, "", *wrong)
    for right in ((memory, None), (None, tmp_path / "None")):
        assert not Pixels((1, 3, 2, 2), labels, 0, "", *right).rows(torch.tensor([0])).any()

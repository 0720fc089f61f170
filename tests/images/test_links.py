"""Links in a data folder: each real folder and image is taken once, and what is left out is said."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.image_files import RGB, image_folder, pairs, put, refusal
from vitfx.images.splits import Splits, open_data


def opened(root: Path) -> tuple[Splits, dict[str, int]]:
    """The data set, and the labels of all its images by name."""
    splits = open_data(str(root), RGB)
    return splits, pairs(splits.calibration) | pairs(splits.evaluation)


def link(path: Path, target: str | Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def said(splits: Splits) -> list[str]:
    _, _, links = splits.description.partition("; links to images that are taken already are left out: ")
    return links.split(", ") if links else []


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return image_folder(tmp_path / "set", {"a": 15, "b": 15})


LINKS: dict[str, tuple[str, str]] = {
    "to the data folder": ("a/loop", ".."),
    "to the folder that it is in": ("a/loop", "."),
    "to its data folder, absolutely": ("a/loop", "{root}"),
    "beside the classes": ("loop", "."),
    "above the data folder": ("a/up", "../.."),
    "to the top of the disk": ("a/up", "/"),
    "to a sibling": ("a/b", "../b"),
    "a class twice": ("c", "b"),
    "a class twice, the link first by name": ("A", "b"),
    "an image of another class": ("a/other.png", "../b/b_3.png"),
    "an image of the same class": ("a/again.png", "a_3.png"),
    "an image beside the classes": ("c/a.png", "../a/a_0.png"),
    "an image that is itself": ("a/x.png", "x.png"),
    "through another link": ("a/loop", "{root}/../alias"),
}


@pytest.mark.parametrize("name", LINKS)
def test_a_link_adds_nothing_and_is_said(root: Path, name: str) -> None:
    link(root.parent / "alias", root)
    before, labels = opened(root)
    assert said(before) == []
    path, target = LINKS[name]
    link(root / path, target.format(root=root))
    after, again = opened(root)
    assert again == labels and len(again) == 30
    assert said(after) == [path]
    assert after.classes == before.classes == ("a", "b")
    assert after.calibration.names == before.calibration.names


def test_many_links_are_counted(root: Path) -> None:
    for index in range(9):
        link(root / "a" / f"z{index}.png", f"../b/b_{index}.png")
    splits, labels = opened(root)
    assert len(labels) == 30
    assert splits.description.endswith("left out: a/z0.png, a/z1.png, a/z2.png and 6 more")


def test_two_links_to_each_other(root: Path) -> None:
    link(root / "a" / "to_b", "../b")
    link(root / "b" / "to_a", "../a")
    splits, labels = opened(root)
    assert len(labels) == 30 and said(splits) == ["a/to_b", "b/to_a"]


def test_links_that_lead_outside_are_followed_once(tmp_path: Path) -> None:
    store = image_folder(tmp_path / "store", {"one": 4, "two": 4})
    root = tmp_path / "set"
    link(root / "a", store / "one")
    link(root / "b", store / "two")
    link(root / "c", store / "two")
    link(root / "d" / "e", store)
    link(store / "two" / "back", root)
    link(store / "two" / "up", tmp_path)
    splits, labels = opened(root)
    assert {name.split("/")[0] for name in labels} == {"a", "b"} and len(labels) == 8
    assert said(splits) == ["b/back", "b/up", "c and 2 more"]


def test_linked_images_are_taken_once(tmp_path: Path) -> None:
    """As content-addressed stores keep them."""
    for index in range(6):
        put(tmp_path / "store" / f"{index}.png", index)
        link(tmp_path / "set" / "ab"[index % 2] / f"{index}.png", tmp_path / "store" / f"{index}.png")
    link(tmp_path / "set" / "b" / "again.png", "../a/0.png")
    splits, labels = opened(tmp_path / "set")
    assert set(labels.values()) == {0, 1} and len(labels) == 6
    assert said(splits) == ["b/again.png"]


@pytest.mark.parametrize(
    ("path", "target"),
    [
        ("train/a/val", "../../val"),
        ("train/c", "../val/a"),
        ("train/a/x.png", "../../val/a/a_0.png"),
        ("val/a/back", "../../train"),
        ("val/b", "../train/b"),
        ("train/a/root", "../.."),
    ],
)
def test_no_image_is_in_both_parts(tmp_path: Path, path: str, target: str) -> None:
    image_folder(tmp_path / "train", {"a": 5, "b": 5})
    image_folder(tmp_path / "val", {"a": 3})
    link(tmp_path / path, target)
    splits, labels = opened(tmp_path)
    assert (len(splits.calibration), len(splits.evaluation), len(labels)) == (10, 3, 13)
    assert said(splits) == [path]


@pytest.mark.parametrize(("part", "target"), [("val", "train"), ("train", "val"), ("val", "train/a")])
def test_a_part_that_is_another_part(tmp_path: Path, part: str, target: str) -> None:
    image_folder(tmp_path / target.split("/")[0], {"a": 5, "b": 5})
    link(tmp_path / part, target)
    assert "no images are in" in (sentence := refusal(tmp_path)) and "shares with another folder" in sentence


def test_parts_that_are_links_are_read(tmp_path: Path) -> None:
    image_folder(tmp_path / "store" / "x", {"a": 5, "b": 5})
    image_folder(tmp_path / "store" / "y", {"a": 2})
    for part, target in (("train", "x"), ("val", "y")):
        link(tmp_path / "set" / part, tmp_path / "store" / target)
    splits, _ = opened(tmp_path / "set")
    assert (len(splits.calibration), len(splits.evaluation), said(splits)) == (10, 2, [])


def test_what_is_left_out_does_not_hang_on_the_disks_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = image_folder(tmp_path / "store", {"one": 3})
    root = image_folder(tmp_path / "set", {"a": 3})
    for name in ("c", "b", "e", "d"):
        link(root / name, store / "one")
    scandir: Callable[..., os.ScandirIterator[str]] = os.scandir
    expected = opened(root)[1]

    class Backwards:
        def __init__(self, *arguments: str) -> None:
            with scandir(*arguments) as entries:
                self.entries = iter(sorted(entries, key=lambda entry: entry.name, reverse=True))

        def __enter__(self) -> Backwards:
            return self

        def __exit__(self, *_: object) -> None: ...

        def __iter__(self) -> Backwards:
            return self

        def __next__(self) -> os.DirEntry[str]:
            return next(self.entries)

        def close(self) -> None: ...

    monkeypatch.setattr(os, "scandir", Backwards)
    assert opened(root)[1] == expected
    assert {name.split("/")[0] for name in expected} == {"a", "b"}


def test_hidden_links_are_not_followed_and_not_said(root: Path) -> None:
    link(root / ".cache", "..")
    link(root / "a" / "._x.png", "a_0.png")
    splits, labels = opened(root)
    assert len(labels) == 30 and said(splits) == []


def test_a_link_that_leads_nowhere_is_told_when_it_is_read(root: Path) -> None:
    link(root / "a" / "gone.png", "nowhere.png")
    splits, labels = opened(root)
    assert len(labels) == 31 and said(splits) == []

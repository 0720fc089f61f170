"""Classes that are chosen: by which names, and which images are theirs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.support.image_files import GREY, RGB, image_folder, picture, tiny_imagenet
from vitfx.images.selection import Selection, list_names, read_asked, select_classes
from vitfx.images.splits import open_data
from vitfx.support.errors import UserError

NAMES = ("goldfish, Carassius auratus", "Égyptian cat", "n01443537", "African grey", "crane, bird", "crane, machine")
WNIDS = ("n01443537", "n02123045", "n02012849", "n03126707")
WORDS = "n01443537\tgoldfish, Carassius auratus\nn02123045\ttabby, tabby cat\nn02012849\tcrane\nn03126707\tcrane\n"


@pytest.fixture
def words(tmp_path: Path) -> str:
    (tmp_path / "words.txt").write_text(WORDS)
    return str(tmp_path)


@pytest.mark.parametrize(
    ("asked", "places"),
    [
        (["African grey", "Égyptian cat"], (3, 1)),
        (["E\u0301gyptian cat", "african_GREY"], (1, 3)),
        (["Carassius auratus, goldfish", "crane bird"], (0, 4)),
        (["goldfish, Carassius auratus", "n01443537"], (0, 2)),
        (["goldfish", "n01443537_goldfish", "machine"], (0, 2, 5)),
        (["0", "3"], (0, 3)),
        ([5, 0], (5, 0)),
        ([2, "goldfish", "1"], (2, 0, 1)),
    ],
)
def test_by_name_and_number(asked: list[str | int], places: tuple[int, ...]) -> None:
    assert select_classes(asked, NAMES, 6) == places


@pytest.mark.parametrize(
    ("asked", "places"),
    [
        (["goldfish", "tabby"], (0, 1)),
        (["tabby cat", "n03126707", "n01443537"], (1, 3, 0)),
        (["Tabby, tabby cat", "2"], (1, 2)),
    ],
)
def test_by_the_words_of_wordnet(asked: list[str], places: tuple[int, ...], words: str) -> None:
    assert select_classes(asked, WNIDS, 4, words) == places
    # timm knows them, too.
    assert select_classes(asked, WNIDS, 4) == places


@pytest.mark.parametrize(
    ("asked", "every", "count", "sentence"),
    [
        (["dog", "goldfish"], NAMES, 6, "`classes`: the model has no class 'dog': give names that it has, such as "),
        (["crane", "0"], NAMES, 6, "'crane' is the name of 2 classes, 'crane, bird' and 'crane, machine': say which"),
        (["African grey", "African grey"], NAMES, 6, "`classes` names 'African grey' twice: give each class once"),
        (["goldfish", "Carassius auratus"], NAMES, 6, "are both the class 'goldfish, Carassius auratus': give each"),
        (["3", "African grey"], NAMES, 6, "'3' and 'African grey' are both the class 'African grey': give each"),
        (["2", 2], None, 6, "'2' and 2 are both logit 2: give each class once"),
        (["2"], None, 6, "`classes` names 1 class, which leaves nothing to tell apart: give at least two"),
        ([], NAMES, 6, "`classes` names no classes, which leaves"),
        (["2", "6"], None, 6, "`classes`: 6 is none of the model's 6 logits: give numbers from 0 to 5"),
        ([2, -1], NAMES, 6, "`classes`: -1 is none of the model's 6 logits: give numbers from 0 to 5"),
        (["1", "cat"], None, 6, "the model does not name its 6 logits, so 'cat' is unknown: give numbers of logits"),
        (["0", "1"], ("1", "2", "3"), 3, "`classes`: the model has no class '0': give names that it has, such as '1'"),
    ],
)
def test_one_sentence(asked: list[str | int], every: tuple[str, ...] | None, count: int, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        select_classes(asked, every, count)
    assert sentence in str(caught.value)


def test_numbers_that_are_names_are_names() -> None:
    assert select_classes(["1", "03"], ("1", "2", "3"), 3) == (0, 2)


@pytest.mark.parametrize("text", ["a\nb, c\n\n", "\ufeffa\r\n  b, c  \r\n"])
def test_a_file_and_commas(tmp_path: Path, text: str) -> None:
    (tmp_path / "classes.txt").write_text(text, encoding="utf-8")
    assert read_asked(str(tmp_path / "classes.txt")) == ("a", "b, c")
    assert read_asked("a, b c ,,d") == ("a", "b c", "d")
    with pytest.raises(UserError, match=r"missing\.txt is no file: check the path"):
        read_asked(str(tmp_path / "missing.txt"))


def test_the_images_of_these_classes(tmp_path: Path) -> None:
    tiny_imagenet(tmp_path)
    whole = open_data(str(tmp_path), RGB)
    every = whole.classes
    assert every is not None
    chosen = Selection((2, 0), 3, every)
    splits = chosen.only_images(whole)
    assert chosen.names == splits.classes == (every[2], every[0])
    for part, before in ((splits.calibration, whole.calibration), (splits.evaluation, whole.evaluation)):
        assert before.labels is not None and part.labels is not None
        expected = [
            (name, (2, 0).index(label))
            for name, label in zip(before.names, before.labels, strict=True)
            if isinstance(label, int) and label in (2, 0)
        ]
        assert list(zip(part.names, part.labels, strict=True)) == expected
    said = f"2 of 3 classes are kept, {every[2]!r}, {every[0]!r}: 8 for calibration and 4 for evaluation are left of "
    assert said in splits.description and splits.remarks[-1].startswith(said)
    assert splits.evaluation.fingerprint() != whole.evaluation.fingerprint()


def test_classes_without_images_are_told(tmp_path: Path) -> None:
    splits = open_data(str(image_folder(tmp_path / "own", {"cat": 5, "dog": 5, "eel": 1})), RGB)
    some = Selection((0, 2), 3, ("cat", "dog", "eel")).only_images(splits)
    assert some.remarks[-1].endswith("; none for evaluation of 'eel'")
    with pytest.raises(UserError, match="own has 1 image of the 2 chosen classes for calibration: give 2 or more"):
        Selection((2, 3), 4, ("cat", "dog", "eel", "fox")).only_images(splits)


def test_images_without_labels_are_all_taken(tmp_path: Path) -> None:
    np.savez(tmp_path / "own.npz", images=np.zeros((10, 8, 8), dtype=np.uint8))
    whole = open_data(str(tmp_path / "own.npz"), GREY)
    some = Selection((0, 2), 3, None).only_images(whole)
    assert some.calibration is whole.calibration and some.classes == ("0", "2")
    assert "the images of own have no labels, and all are taken to be of these classes" in some.description


def test_unlabelled_images_beside_labelled_ones_are_refused(tmp_path: Path) -> None:
    image_folder(tmp_path / "train", {"cat": 3, "dog": 3})
    (tmp_path / "val").mkdir()
    for index in range(3):
        picture(index).save(tmp_path / "val" / f"{index}.png")
    with pytest.raises(UserError, match=r"the images for evaluation of .* have no labels, so those of the 2 chosen"):
        Selection((0, 1), 3, ("cat", "dog", "eel")).only_images(open_data(str(tmp_path), RGB))


def test_images_of_several_labels_are_refused(tmp_path: Path) -> None:
    rows = np.array([[1, 1, 0], [0, 1, 1]] * 5)
    np.savez(tmp_path / "own.npz", images=np.zeros((10, 8, 8), dtype=np.uint8), labels=rows)
    with pytest.raises(UserError, match="`classes` is for images of one class each, and those of own have several"):
        Selection((0, 1), 3, None).only_images(open_data(str(tmp_path / "own.npz"), GREY))


def test_a_choice_among_a_choice() -> None:
    first = Selection((4, 2, 0), 5, tuple("abcde"))
    second = first.then((2, 0))
    assert second.positions == (0, 4) and second.names == ("a", "e")
    assert Selection.from_json(second.to_json()) == second
    assert first.renamed(["x", "y", "z"]).every == ("z", "b", "y", "d", "x")
    assert Selection((1,), 3, None).renamed(["x"]).every == ("0", "x", "2")


@pytest.mark.parametrize(
    "record",
    [{}, {"positions": [3], "count": 3, "names": None}, {"positions": ["a"], "count": 3, "names": None},
     {"positions": [0], "count": 3, "names": ["a"]}],
)  # fmt: skip
def test_a_damaged_record(record: dict[str, object]) -> None:
    with pytest.raises(UserError, match="the artifact's record of its classes is damaged"):
        Selection.from_json(record)


def test_names_in_a_line() -> None:
    assert list_names(("a", "b")) == "'a', 'b'"
    assert list_names(tuple("abcdefg")) == "'a', 'b', 'c', 'd', 'e' and 2 more"


def test_images_of_all_others(tmp_path: Path) -> None:
    counts = {"ant": 5, "bee": 5, "cat": 20, "dog": 20, "eel": 20}
    whole = open_data(str(image_folder(tmp_path / "own", counts)), RGB)
    chosen = Selection((1, 0), 5, tuple(counts), "other")
    splits = chosen.only_images(whole)
    assert splits.classes == ("bee", "ant", "other")
    assert splits.remarks[-1].endswith("8 and 2 of them of the other classes")
    labels = splits.calibration.labels
    assert labels is not None and [labels.count(label) for label in (0, 1, 2)] == [4, 4, 8]
    others = {name.split("/")[-2] for name, label in zip(splits.calibration.names, labels, strict=True) if label == 2}
    assert others == {"cat", "dog", "eel"}
    for count in (4, 8, 12):
        sampled = splits.calibration.sample(count, seed=1)
        assert sampled.labels is not None and sampled.labels.count(2) == count // 2
        assert sampled.names == splits.calibration.sample(16, seed=1).names[:count]
    few = Selection((2, 3, 4), 5, tuple(counts), "other").only_images(whole)
    assert few.calibration.labels is not None and few.calibration.labels.count(3) == 8


@pytest.mark.parametrize(
    ("names", "name"),
    [
        (("cat", "dog", "eel"), "other"),
        (("cat", "dog", "Other"), "none of these"),
        (("other", "dog", "none of these"), "other 2"),
        (None, "other"),
    ],
)
def test_the_name_of_all_others(names: tuple[str, ...] | None, name: str) -> None:
    chosen = Selection((0, 1, 2), 3, names).then((2, 0), other=True)
    assert chosen.other == name and chosen.names[-1] == name and len(chosen.names) == 3
    assert Selection.from_json(chosen.to_json()) == chosen
    assert chosen.then((1, 0)).names == (chosen.names[1], chosen.names[0])
    assert chosen.renamed(["x", "y", "z"]).names == ("x", "y", "z")
    with pytest.raises(UserError, match="`other` stands for the classes that are left out, and none are: leave it out"):
        Selection((0, 1, 2), 3, names).then((2, 0, 1), other=True)

"""Which folder belongs to which logit: by name in every spelling, by index or WordNet id, and else by place."""

from __future__ import annotations

import random
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.image_files import RGB, image_folder, pairs, put
from vitfx.images.classes import match_classes, read_class_names, sort_names
from vitfx.images.splits import Splits, open_data
from vitfx.support.errors import UserError


def opened(root: Path, logits: int, classes: tuple[str, ...] | None = None) -> tuple[Splits, dict[str, int]]:
    """The data set, and the label of each class folder."""
    splits = open_data(str(root), RGB, classes, lambda: logits)
    labels = pairs(splits.calibration) | pairs(splits.evaluation)
    return splits, {name.split("/")[-2]: label for name, label in labels.items()}


def refused(root: Path, logits: int, classes: tuple[str, ...] | None = None) -> str:
    with pytest.raises(UserError) as caught:
        open_data(str(root), RGB, classes, lambda: logits)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("count", [3, 10, 12, 101])
@pytest.mark.parametrize("width", [1, 3])
def test_numbers_are_indices_and_not_text(tmp_path: Path, count: int, width: int) -> None:
    names = [f"{index:0{width}}" for index in range(count)]
    splits, labels = opened(image_folder(tmp_path, dict.fromkeys(names, 2)), count)
    assert labels == {name: int(name) for name in names}
    assert splits.remarks == ("its classes are numbers of logits, counted from 0",)


def test_some_of_the_numbers(tmp_path: Path) -> None:
    image_folder(tmp_path, dict.fromkeys(["3", "10", "7"], 2))
    assert opened(tmp_path, 12)[1] == {"3": 3, "7": 7, "10": 10}
    few = "3 classes and the model 2 logits, which have no names (the classes are 0 '3', 1 '7', 2 '10')"
    assert few in refused(tmp_path, 2)


def test_numbers_from_one(tmp_path: Path) -> None:
    names = [str(number) for number in range(1, 12)]
    splits, labels = opened(image_folder(tmp_path, dict.fromkeys(names, 2)), 11)
    assert labels == {name: int(name) - 1 for name in names}
    assert "taken to be the classes in order, 0 '1', 1 '2', 2 '3' … 10 '11'" in splits.description
    # Of twelve logits these may be the first eleven or the last.
    assert "11 classes and the model 12 logits" in refused(tmp_path, 12)


@pytest.mark.parametrize("logits", [1, 2, 4, 10, 1000])
def test_other_numbers_of_folders_than_logits_are_refused(tmp_path: Path, logits: int) -> None:
    image_folder(tmp_path, {"c3": 2, "c5": 2, "c7": 2})
    sentence = refused(tmp_path, logits)
    assert f"3 classes and the model {logits} logits" in sentence and "`class_names` FILE" in sentence


def test_position_is_said(tmp_path: Path) -> None:
    splits, labels = opened(image_folder(tmp_path, {"b": 2, "a": 2}), 2)
    assert labels == {"a": 0, "b": 1}
    assert "the model does not name its 2 logits" in splits.description and "0 'a', 1 'b'" in splits.description


def test_own_names_need_no_word(tmp_path: Path) -> None:
    splits, labels = opened(image_folder(tmp_path, {"b": 2, "a": 2}), 3, ("c", "b", "a"))
    assert labels == {"a": 2, "b": 1} and splits.description.endswith("set aside)")


@pytest.mark.parametrize(
    ("folder", "model"),
    [
        ("Golden_Retriever", "golden retriever"),
        ("golden-retriever", "Golden Retriever"),
        ("7", "07"),
        ("007", "7"),
        ("n01440764", "n01440764 tench"),
        ("n01440764-tench", "n01440764"),
        ("tench", "tench, Tinca tinca"),
        ("Tinca_tinca", "tench, Tinca tinca"),
        (unicodedata.normalize("NFD", "Café"), unicodedata.normalize("NFC", "Café")),
        (unicodedata.normalize("NFC", "が"), unicodedata.normalize("NFD", "が")),
        ("straße", "STRASSE"),
    ],
)
def test_spellings(tmp_path: Path, folder: str, model: str) -> None:
    image_folder(tmp_path, {folder: 2, "other": 2})
    assert opened(tmp_path, 3, ("other", "third", model))[1] == {folder: 2, "other": 0}


def test_exact_names_go_before_like_ones(tmp_path: Path) -> None:
    image_folder(tmp_path, {"crane": 2, "Crane": 2})
    assert opened(tmp_path, 2, ("Crane", "crane"))[1] == {"Crane": 0, "crane": 1}
    assert "are both the class" in refused(tmp_path, 2, ("CRANE", "other"))
    assert "does not know the class" in refused(tmp_path, 3, ("CRANE", "cranE", "other"))


def test_one_class_in_two_normal_forms(tmp_path: Path) -> None:
    for part, form in (("train", "NFC"), ("val", "NFD")):
        image_folder(tmp_path / part, {unicodedata.normalize(form, name): 2 for name in ("é", "ö")})
    splits, _ = opened(tmp_path, 2)
    assert splits.classes == ("é", "ö") and splits.calibration.labels == splits.evaluation.labels == (0, 0, 1, 1)


def test_names_that_are_not_the_logits_number(tmp_path: Path) -> None:
    assert "10 logits and names for 2 classes" in refused(image_folder(tmp_path, {"a": 2, "b": 2}), 10, ("a", "b"))


@pytest.mark.parametrize("named", [False, True])
def test_imagenets_folders(tmp_path: Path, named: bool) -> None:
    info = pytest.importorskip("timm.data.imagenet_info").ImageNetInfo()
    model = tuple(info.index_to_description(index) for index in range(1000)) if named else None
    # Three of Imagenette's ten: tench, church, parachute.
    image_folder(tmp_path, {"n01440764": 2, "n03028079": 2, "n03888257": 2})
    splits, labels = opened(tmp_path, 1000, model)
    assert labels == {"n01440764": 0, "n03028079": 497, "n03888257": 701}
    assert "by WordNet id" in splits.description
    assert "3 classes" in refused(tmp_path, 999)


def test_folders_without_images_stay_classes(tmp_path: Path) -> None:
    image_folder(tmp_path, {"a": 3, "c": 3, "e": 3})
    (tmp_path / "b").mkdir()
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "photo.heic").write_bytes(b"not read")
    for system in (".cache", "__MACOSX", "@eaDir"):
        (tmp_path / system).mkdir()
    splits, labels = opened(tmp_path, 5)
    assert labels == {"a": 0, "c": 2, "e": 4} and splits.classes == ("a", "b", "c", "d", "e")
    assert "the class folders b, d of the data hold no images that can be read" in splits.description
    # Names settle it.
    assert opened(tmp_path, 3, ("e", "c", "a"))[1] == {"a": 2, "c": 1, "e": 0}


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_class_without_images_in_one_part(tmp_path: Path, part: str) -> None:
    for name in ("train", "val"):
        image_folder(tmp_path / name, {"b": 2} if name == part else {"a": 2, "b": 2})
    (tmp_path / part / "a").mkdir()
    splits, labels = opened(tmp_path, 2)
    assert labels == {"a": 0, "b": 1}
    assert f"the class folder a of {part} holds no images" in splits.description


@pytest.mark.parametrize("ending", ["jfif", "JPE", "Jpeg"])
def test_endings_of_jpeg(tmp_path: Path, ending: str) -> None:
    for name in "ab":
        for index in range(2):
            put(tmp_path / name / f"{index}.jpg", index)
            (tmp_path / name / f"{index}.jpg").rename(tmp_path / name / f"{index}.{ending}")
    assert len(opened(tmp_path, 2)[0].calibration.load()) == 2


@pytest.mark.parametrize("content", ["b\na\n", "\ufeffb\r\na\r\n", "  b \n\na\n\n\n"])
def test_class_names_of_a_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "names.txt").write_bytes(content.encode())
    assert read_class_names(tmp_path / "names.txt") == ("b", "a")


def test_a_name_that_two_logits_share(tmp_path: Path) -> None:
    image_folder(tmp_path, {"b": 2})
    assert opened(tmp_path, 3, ("a", "b", "a"))[1] == {"b": 1}
    image_folder(tmp_path, {"a": 2})
    assert "the model has two classes named 'a'" in refused(tmp_path, 3, ("a", "b", "a"))


def test_names_in_any_bytes(tmp_path: Path) -> None:
    names = [b"caf\xe9".decode(errors="surrogateescape"), "tab\tand\nline", "日本", "-o"]
    image_folder(tmp_path / "set", dict.fromkeys(names, 3))
    splits, labels = opened(tmp_path / "set", 4)
    assert set(labels) == set(names) and set(labels.values()) == {0, 1, 2, 3}
    assert splits.calibration.sample(5, 0).fingerprint() and len(splits.calibration.load()) == 8
    assert "\n" not in splits.description


@given(st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=12, unique=True), st.randoms())
def test_order_of_folders_says_nothing_where_names_do(names: list[str], rng: random.Random) -> None:
    model = sorted({unicodedata.normalize("NFC", name) for name in names})
    data = rng.sample(model, rng.randint(1, len(model)))
    assert match_classes(data, model, len(model), "set").positions == {name: model.index(name) for name in data}


def test_names_are_sorted_as_numbers_only_where_all_are() -> None:
    assert sort_names(["10", "9", "1"]) == ("1", "9", "10")
    assert sort_names(["10", "9", "a"]) == ("10", "9", "a")

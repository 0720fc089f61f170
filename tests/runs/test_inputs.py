"""Which logit a class folder belongs to: by the model's names, by a file of names, by number, or by position."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import pytest

import vitfx.images.splits
from tests.support.prune_runs import SIZES, checkpoint, model, picture, run
from vitfx.cli.options import OF_IMAGES
from vitfx.runs.inputs import Inputs, open_inputs
from vitfx.support.errors import UserError


def opened(tmp_path: Path, names: Sequence[str], listed: str | None = None, **changes: object) -> Inputs:
    for number, name in enumerate(names):
        for copy in range(2):
            picture(tmp_path / "images" / name / f"{copy}.png", 2 * number + copy)
    file = None
    if listed is not None:
        file = tmp_path / "names.txt"
        file.write_text(listed, encoding="utf-8")
    path = checkpoint(tmp_path / "model.pt", **{"classes": None, **changes})
    options = {"arch": None, "weights": None, "output": None, "trust_pickle": False, **dict.fromkeys(OF_IMAGES)}
    return open_inputs(Namespace(model=str(path), data=str(tmp_path / "images"), class_names=file, **options))


def labels(inputs: Inputs) -> dict[str, int]:
    """The label of each class folder."""
    images = inputs.splits.evaluation
    assert images.labels is not None
    return {name.split("/")[0]: label for name, label in zip(images.names, images.labels, strict=True)}


@pytest.mark.parametrize(
    "names",
    [
        [str(number) for number in range(10)],
        ["3", "7"],
        ["0", "9"],
        ["00", "01", "02", "09"],
    ],
)
def test_numbers_are_positions(tmp_path: Path, names: list[str]) -> None:
    inputs = opened(tmp_path, names)
    assert labels(inputs) == {name: int(name) for name in names}
    assert "its classes are numbers of logits" in inputs.splits.description


def test_ten_comes_after_nine(tmp_path: Path) -> None:
    sizes = SIZES | {"classes": 12}
    names = [str(number) for number in range(12)]
    inputs = opened(tmp_path, names, kwargs=sizes, state_dict=model(classes=12).state_dict())
    assert labels(inputs) == {name: int(name) for name in names}


def test_as_many_classes_as_logits_are_matched_in_order_and_said(tmp_path: Path) -> None:
    inputs = opened(tmp_path, [f"class {letter}" for letter in "jihgfedcba"])
    assert labels(inputs) == {f"class {letter}": index for index, letter in enumerate("abcdefghij")}
    assert inputs.splits.description.endswith(
        "the model does not name its 10 logits: they are taken to be the classes in order, "
        "0 'class a', 1 'class b', 2 'class c' … 9 'class j'"
    )


@pytest.mark.parametrize(
    "names", [["cat", "dog", "ant"], ["7", "10"], ["1", "2", "3"], [f"c{number}" for number in range(11)]]
)
def test_other_numbers_of_classes_are_never_guessed(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(UserError, match=rf"has {len(names)} classes and the model 10 logits, .* `class_names` FILE"):
        opened(tmp_path, names)


def test_a_file_of_names_settles_it(tmp_path: Path) -> None:
    listed = "ant\nbee\n\ncat\n" + "".join(f"other {number}\n" for number in range(7))
    inputs = opened(tmp_path, ["cat", "ant"], listed)
    assert labels(inputs) == {"ant": 0, "cat": 2}
    assert inputs.model.classes is not None and inputs.model.classes[:3] == ("ant", "bee", "cat")


def test_a_file_of_names_goes_before_the_models_own(tmp_path: Path) -> None:
    names = [f"n{number}" for number in range(10)]
    inputs = opened(tmp_path, ["n3", "n1"], "\n".join(names), classes=tuple("0123456789"))
    assert labels(inputs) == {"n1": 1, "n3": 3}


@pytest.mark.parametrize(
    ("listed", "sentence"), [("a\nb\n", "has 2 names and the model 10 logits: give one for each"), ("", "has 0 names")]
)
def test_a_file_of_other_length_is_refused(tmp_path: Path, listed: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        opened(tmp_path, ["a", "b"], listed)


def test_a_missing_file_of_names(tmp_path: Path) -> None:
    checkpoint(tmp_path / "model.pt")
    options = Namespace(
        model=str(tmp_path / "model.pt"), arch=None, weights=None, output=None, trust_pickle=False,
        data="digits", class_names=tmp_path / "none.txt", **dict.fromkeys(OF_IMAGES),
    )  # fmt: skip
    with pytest.raises(UserError, match=r"none.txt can't be read .*: give `class_names` a file"):
        open_inputs(options)


@pytest.mark.parametrize("names", [["3", "7"], [str(number) for number in range(10)], list("abcdefghij")])
def test_the_data_is_listed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str]) -> None:
    calls: list[str] = []
    listed = vitfx.images.splits.read_layout
    monkeypatch.setattr("vitfx.images.splits.read_layout", lambda *given: calls.append(given[0]) or listed(*given))
    opened(tmp_path, names)
    assert len(calls) == 1


def test_bytes_that_are_no_utf8_and_images_without_classes(tmp_path: Path) -> None:
    odd = b"caf\xe9".decode(errors="surrogateescape")
    names = [odd, "two", *(f"other {number}" for number in range(8))]
    (tmp_path / "names.txt").write_text("\n".join(names), errors="surrogateescape")
    root = tmp_path / odd / "set"
    for number in range(6):
        for name in (odd, "two"):
            picture(root / "Train" / name / f"{number}.png", number)
        picture(root / "Val" / f"{odd}{number}.png", number)
    path, out = checkpoint(tmp_path / "m.pt", classes=None), tmp_path / "out"
    options = ("--data", str(root), "--class-names", str(tmp_path / "names.txt"), "--samples", "8", "--tau", "0")
    assert run(path, out, *options) == 0
    report = json.loads((out / "report.json").read_text())
    assert report["settings"]["data"] == str(root)
    reason = "top-1 is missing: the images of Val are not in class folders"
    assert reason in report["notes"] and reason in (out / "report.md").read_text(errors="surrogateescape")

"""The layouts in which data sets lie: which images there are, in which part, of which class."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitfx.images.arrays import read_digits, read_npz
from vitfx.images.sources import ANNOTATIONS, ArrayImage, FolderReader, ImageSource, Listing, StoredImage, list_tars
from vitfx.support.errors import UserError

_EXACT = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
"""Names of parts as most data sets have them, which go before similar ones."""
_EVALUATION_KINDS = ("val", "test")
_PART_WORDS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_FILLERS = {"", "seg", "data", "images", "image", "imgs", "img", "split"}
"""Words that may stand beside a part's in the name of its folder."""


@dataclass(frozen=True)
class Part:
    """Some images of a data set, in the order of their names."""

    title: str  #: its folder's name, empty where the data set has no parts
    names: tuple[str, ...]
    sources: tuple[ImageSource, ...]
    labels: tuple[str, ...] | None  #: the name of each image's class, where they are known


@dataclass(frozen=True)
class Layout:
    """One part that is still to be split, or a training and an evaluation part."""

    name: str
    parts: tuple[Part, ...]
    classes: tuple[str, ...] | None  #: all class names in the order of their labels, None where no image has a class
    left_out: tuple[str, ...] = ()  #: links in the folder to images that are taken already


def read_layout(spec: str, channels: int) -> Layout:
    """Lists the images of a folder, an .npz file or "digits" without decoding any; raises UserError.

    channels: 1 or 3 for image files; arrays may have any number that they share with the model.
    """
    if not spec:
        raise UserError("the data set's path is empty: pass a folder with --data")
    if spec == "digits":
        return _layout_of_arrays("digits", *read_digits())
    path = Path(spec)
    if path.is_dir():
        if channels not in (1, 3):
            raise UserError(f"the model takes {channels} channels, image files have 1 or 3: pass an .npz file")
        return _layout_of_folder(path)
    if path.suffix == ".npz" and path.is_file():
        return _layout_of_arrays(path.stem, *read_npz(path, channels))
    if path.exists():
        raise UserError(f"{spec} is neither a folder nor an .npz file: pass the folder that holds the images")
    if path.name == spec and path.suffix != ".npz":
        raise UserError(
            f"the model names the data set {spec!r}, and there is no folder of that name here: "
            "pass the data set's folder with --data"
        )
    raise UserError(f"there is no folder or file {spec}: check the path given with --data")


def _layout_of_arrays(name: str, pixels: np.ndarray, labels: list[str] | None, classes: list[str] | None) -> Layout:
    names = tuple(f"{name}/{index}" for index in range(len(pixels)))
    part = Part(name, names, tuple(map(ArrayImage, pixels)), None if labels is None else tuple(labels))
    return Layout(name, (part,), None if classes is None else tuple(classes))


def _layout_of_folder(root: Path) -> Layout:
    name = root.resolve().name
    root = _below_wrappers(root)
    folders = _folders(root)
    kinds = {kind: _part_folder(root, folders, kind) for kind in ("train", *_EVALUATION_KINDS)}
    places = {kind: place for kind, place in kinds.items() if place is not None}
    if "train" in places and not places.keys() & set(_EVALUATION_KINDS) and _is_a_class(places["train"], folders):
        places = {}
    # Of several the first: val goes before test, which often comes without labels.
    evaluation = next((kind for kind in _EVALUATION_KINDS if kind in places), None)
    titles = [places[kind].relative_to(root).as_posix() for kind in ("train", evaluation) if kind in places] or [""]
    reader = FolderReader([root / title for title in titles if (root / title).is_dir()])
    left_out = sorted(link.relative_to(root).as_posix() for link in reader.left_out)
    parts = []
    for title in titles:
        folder = root / title
        part = _labelled(title, reader.listing(folder) if folder.is_dir() else list_tars(_tars(root, title), title))
        if not part.names:
            hint = f" but those that {left_out[0]} shares with another folder" if left_out else ""
            raise UserError(f"no images are in {folder}{hint}: pass a folder of .jpg or .png files")
        parts.append(part)
    labels = {label for part in parts for label in part.labels or ()}
    if labels and titles == [""] and all(_kind_of_part(label) for label in labels):
        shown = ", ".join(sorted(labels)[:4])
        raise UserError(
            f"the folders of {root} ({shown}) are named like parts of a data set and not like classes: name the folder "
            "of the training images train and the other one val, or pass one of them"
        )
    return Layout(name, tuple(parts), tuple(sorted(labels)) or None, tuple(left_out))


def _folders(root: Path) -> list[Path]:
    with suppress(PermissionError):  # what reads the images has a sentence for it
        return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    return []


def _below_wrappers(root: Path) -> Path:
    """The folder itself or, where it holds a single folder that is divided into parts, that one."""
    folders = _folders(root)
    if len(folders) != 1 or _kind_of_part(folders[0].name) or any(path.is_file() for path in root.iterdir()):
        return root
    inside = {_kind_of_part(folder.name) for folder in _folders(folders[0])}
    return folders[0] if "train" in inside and inside & set(_EVALUATION_KINDS) else root


def _kind_of_part(name: str) -> str | None:
    """ "Training", "seg_train" and "train2017" -> "train"; likewise "val" and "test"; None for other names."""
    words = [word.rstrip("0123456789").removesuffix("set") for word in re.split(r"[\W_]+", name.casefold())]
    kinds = {_PART_WORDS[word] for word in words if word in _PART_WORDS}
    others = [word for word in words if word not in _PART_WORDS and word not in _FILLERS]
    return kinds.pop() if len(kinds) == 1 and not others else None


def _part_folder(root: Path, folders: Sequence[Path], kind: str) -> Path | None:
    """The folder that holds this part, or the name that its tar files begin with; None where there is none.

    Raises UserError where several folders look like it.
    """
    named = [folder for folder in folders if _kind_of_part(folder.name) == kind]
    exact = [folder for folder in named if folder.name in _EXACT[kind]]
    if not exact and len(named) > 1:
        raise UserError(
            f"{root} has two folders for one part, {named[0].name} and {named[1].name}: name the right one {kind}"
        )
    if named:
        folder = min(exact, key=lambda path: _EXACT[kind].index(path.name)) if exact else named[0]
        # Archives often hold the folder that they are named after: seg_train/seg_train.
        while len(inner := list(folder.iterdir())) == 1 and inner[0].is_dir() and _kind_of_part(inner[0].name) == kind:
            folder = inner[0]
        return folder
    return next((root / name for name in _EXACT[kind] if _tars(root, name)), None)


def _is_a_class(train: Path, folders: Sequence[Path]) -> bool:
    """Whether `train` is a class (of vehicles) beside others: it holds images themselves, and no folders."""
    others = [folder for folder in folders if folder != train and not _kind_of_part(folder.name)]
    return bool(others) and train.is_dir() and not any(path.is_dir() for path in train.iterdir())


def _tars(root: Path, part: str) -> list[Path]:
    return [path for path in sorted(root.glob(f"{part}*.tar")) if path.is_file()]


def _labelled(part: str, listing: Listing) -> Part:
    """Classes from the annotations (Tiny ImageNet's val), else from the first folder, else none."""
    images = listing.images
    flat = {path: image for path, image in images.items() if "/" not in path}
    labels: tuple[str, ...] | None
    if listing.annotations is not None:
        annotated = _read_annotations(listing.annotations)
        if missing := [path for path in images if Path(path).name not in annotated]:
            raise UserError(f"{ANNOTATIONS} has no line for {missing[0]}: use the file that came with the images")
        labels = tuple(annotated[Path(path).name] for path in images)
    elif len(flat) == len(images) or {path.split("/")[0] for path in images} == {"images"}:
        labels = None
    else:
        # As with torchvision's ImageFolder, what lies beside the class folders has no class and is left.
        images = {path: image for path, image in images.items() if path not in flat}
        labels = tuple(path.split("/")[0] for path in images)
    names = tuple(f"{part}/{path}" if part else path for path in images)
    return Part(part, names, tuple(images.values()), labels)


def _read_annotations(file: StoredImage) -> dict[str, str]:
    """File name -> class, from lines of name, class and bounding box set apart by tabs."""
    lines = file.read().decode(errors="replace").splitlines()
    fields = [line.split() for line in lines if line.strip()]
    if broken := [number for number, field in enumerate(fields, 1) if len(field) < 2]:
        raise UserError(f"line {broken[0]} of {ANNOTATIONS} has no class: use the file that came with the images")
    return {field[0]: field[1] for field in fields}

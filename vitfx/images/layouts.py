"""The layouts in which data sets lie: which images there are, in which part, of which class."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitfx.images.arrays import read_digits, read_npz
from vitfx.images.classes import normal, sort_names
from vitfx.images.parts import find_parts, tars_of
from vitfx.images.sources import ANNOTATIONS, ArrayImage, FolderReader, ImageSource, Listing, StoredImage, list_tars
from vitfx.support.errors import UserError

Labels = str | tuple[str, ...]
"""An image's class, or its labels."""


@dataclass(frozen=True)
class Part:
    """Some images of a data set, in the order of their names."""

    title: str  #: its folder's name, empty where the data set has no parts
    names: tuple[str, ...]
    sources: tuple[ImageSource, ...]
    #: the name of each image's class, or of each of its labels where it may have several, where they are known
    labels: tuple[Labels, ...] | None
    empty: tuple[str, ...] = ()  #: the names of class folders without an image


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
        raise UserError("the data set's path is empty: pass a folder with `data`")
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
            "pass the data set's folder with `data`"
        )
    raise UserError(f"there is no folder or file {spec}: check the path given with `data`")


def _layout_of_arrays(
    name: str, pixels: np.ndarray, labels: Sequence[Labels] | None, classes: list[str] | None
) -> Layout:
    names = tuple(f"{name}/{index}" for index in range(len(pixels)))
    part = Part(name, names, tuple(map(ArrayImage, pixels)), None if labels is None else tuple(labels))
    return Layout(name, (part,), None if classes is None else tuple(classes))


def _layout_of_folder(root: Path) -> Layout:
    name = root.resolve().name
    root, titles = find_parts(root)
    reader = FolderReader([root / title for title in titles if (root / title).is_dir()])
    left_out = sorted(link.relative_to(root).as_posix() for link in reader.left_out)
    parts = []
    for title in titles:
        folder = root / title
        part = _labelled(
            title, reader.listing(folder) if folder.is_dir() else list_tars(tars_of(root, title), folder.name)
        )
        if not part.names:
            hint = f" but those that {left_out[0]} shares with another folder" if left_out else ""
            raise UserError(f"no images are in {folder}{hint}: pass a folder of .jpg or .png files")
        parts.append(part)
    labels = {label for part in parts for label in (*(part.labels or ()), *part.empty) if isinstance(label, str)}
    return Layout(name, tuple(parts), sort_names(labels) or None, tuple(left_out))


def _labelled(part: str, listing: Listing) -> Part:
    """Classes from the annotations (Tiny ImageNet's val), else from the first folder, else none."""
    images = listing.images
    flat = {path: image for path, image in images.items() if "/" not in path}
    labels: tuple[Labels, ...] | None
    empty: tuple[str, ...] = ()
    if listing.annotations is not None:
        annotated = _read_annotations(listing.annotations)
        if missing := [path for path in images if normal(Path(path).name) not in annotated]:
            raise UserError(f"{ANNOTATIONS} has no line for {missing[0]}: use the file that came with the images")
        labels = tuple(annotated[normal(Path(path).name)] for path in images)
    elif len(flat) == len(images) or {path.split("/")[0] for path in images} == {"images"}:
        labels = None
    else:
        # As with torchvision's ImageFolder, what lies beside the class folders has no class and is left.
        images = {path: image for path, image in images.items() if path not in flat}
        labels = tuple(normal(path.split("/")[0]) for path in images)
        empty = tuple(sorted({normal(folder) for folder in listing.folders} - set(labels)))
    names = tuple(f"{part}/{path}" if part else path for path in images)
    return Part(part, names, tuple(images.values()), labels, empty)


def _read_annotations(file: StoredImage) -> dict[str, str]:
    """File name -> class, from lines of name, class and bounding box set apart by tabs."""
    lines = file.read().decode(errors="surrogateescape").splitlines()
    fields = [line.split("\t" if "\t" in line else None) for line in lines if line.strip()]
    if broken := [number for number, field in enumerate(fields, 1) if len(field) < 2]:
        raise UserError(f"line {broken[0]} of {ANNOTATIONS} has no class: use the file that came with the images")
    return {normal(field[0].strip()): normal(field[1].strip()) for field in fields}

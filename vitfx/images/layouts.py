"""The layouts in which data sets lie: which images there are, in which part, of which class."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vitfx.images.arrays import read_digits, read_npz
from vitfx.images.sources import ArrayImage, ImageSource, Listing, StoredImage, list_folder, list_tars
from vitfx.support.errors import UserError

_EVALUATION_PARTS = ("val", "valid", "validation", "test")


@dataclass(frozen=True)
class Part:
    """Images in the order of their names, and the name of each one's class where it is known."""

    title: str
    names: tuple[str, ...]
    sources: tuple[ImageSource, ...]
    labels: tuple[str, ...] | None


@dataclass(frozen=True)
class Layout:
    """One part that is still to be split, or a training and an evaluation part.

    classes: all class names in the order of their labels, None where no image has a class.
    """

    name: str
    parts: tuple[Part, ...]
    classes: tuple[str, ...] | None


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
            f"the model names the data set {spec!r} and there is no folder of that name here:"
            f" pass the data set's folder with --data"
        )
    raise UserError(f"there is no folder or file {spec}: check the path given with --data")


def _layout_of_arrays(name: str, pixels: np.ndarray, labels: list[str] | None, classes: list[str] | None) -> Layout:
    names = tuple(f"{name}/{index}" for index in range(len(pixels)))
    part = Part(name, names, tuple(map(ArrayImage, pixels)), None if labels is None else tuple(labels))
    return Layout(name, (part,), None if classes is None else tuple(classes))


def _layout_of_folder(root: Path) -> Layout:
    # Of several the first: val goes before test, which often comes without labels.
    evaluation = next(filter(None, (_find_part(root, part) for part in _EVALUATION_PARTS)), None)
    parts = [part for part in (_find_part(root, "train"), evaluation) if part is not None]
    parts = parts or [_labelled("", list_folder(root))]
    for part in parts:
        if not part.names:
            raise UserError(f"no images are in {root / part.title}: pass a folder of .jpg or .png files")
    name = root.resolve().name
    labels = {label for part in parts for label in part.labels or ()}
    return Layout(name, tuple(parts), tuple(sorted(labels)) or None)


def _find_part(root: Path, part: str) -> Part | None:
    """The folder `part`, or else the tar files whose names begin with it."""
    if (root / part).is_dir():
        return _labelled(part, list_folder(root / part))
    tars = [path for path in sorted(root.glob(f"{part}*.tar")) if path.is_file()]
    return _labelled(part, list_tars(tars, part)) if tars else None


def _labelled(part: str, listing: Listing) -> Part:
    """Classes from the annotations (Tiny ImageNet's val), else from the first folder, else none."""
    images = listing.images
    flat = {path: image for path, image in images.items() if "/" not in path}
    labels: tuple[str, ...] | None
    if listing.annotations is not None:
        annotated = _read_annotations(listing.annotations)
        if missing := [path for path in images if Path(path).name not in annotated]:
            raise UserError(f"val_annotations.txt has no line for {missing[0]}: take the images' own file")
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
        raise UserError(f"line {broken[0]} of val_annotations.txt has no class: take the images' own file")
    return {field[0]: field[1] for field in fields}

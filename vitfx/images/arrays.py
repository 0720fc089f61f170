"""Data sets that are arrays: .npz files and scikit-learn's digits."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from vitfx.support.digests import check_zip
from vitfx.support.errors import UserError, in_a_line

# Labels are positions among the classes: a larger one is a mistake, such as a time stamp or an identifier.
_MOST_CLASSES = 100_000

# uint8 (N, C, H, W); the name of each image's class, or of its labels; all names in order.
Arrays = tuple[np.ndarray, list[str] | list[tuple[str, ...]] | None, list[str] | None]


def read_digits() -> Arrays:
    """The 1,797 digits of scikit-learn (UCI optical recognition of handwritten digits): 8x8, values 0..16."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels = np.rint(bunch.images * (255 / 16)).astype(np.uint8)[:, None]
    return pixels, [str(label) for label in bunch.target], [str(digit) for digit in range(10)]


def read_npz(path: Path, channels: int) -> Arrays:
    """Reads `images` and, where it is there, `labels`: integers or strings, or rows of a 0 or 1 for each label; raises
    UserError."""
    try:
        check_zip(path)
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: file[key] for key in ("images", "labels") if key in file.files}
            known = in_a_line(", ".join(file.files) or "nothing")
    except Exception as error:  # What a member's header may hold wrongly is for numpy to say, in its own way each time.
        raise UserError(
            f"{path} is not an .npz file of plain arrays ({in_a_line(error)}): write it with numpy.savez"
        ) from error
    if other := [key for key, array in arrays.items() if not isinstance(array, np.ndarray)]:
        raise UserError(f"{other[0]} of {path} is no array: write it with numpy.savez")
    if "images" not in arrays:
        raise UserError(f"{path} holds {known} and no array named images: use numpy.savez(images=...)")
    pixels = _to_uint8(path, _channels_first(path, arrays["images"], channels))
    if "labels" not in arrays:
        return pixels, None, None
    labels = arrays["labels"]
    if labels.ndim == 2 and len(labels) == len(pixels) and labels.shape[1] > 1 and bool(np.isin(labels, (0, 1)).all()):
        several = [tuple(str(place) for place in np.flatnonzero(row)) for row in labels]
        return pixels, several, [str(place) for place in range(labels.shape[1])]
    if labels.shape != (len(pixels),):
        raise UserError(
            f"labels of {path} has the shape {labels.shape} for {len(pixels)} images: give one label per image, or "
            "a 0 or 1 for each of several"
        )
    return pixels, *_names_of(path, labels)


def _channels_first(path: Path, images: np.ndarray, channels: int) -> np.ndarray:
    """(N,H,W), (N,H,W,C) or (N,C,H,W) -> (N,C,H,W) with a C that can be made into `channels`."""
    if images.ndim not in (3, 4) or 0 in images.shape[1:]:
        raise UserError(f"images of {path} has the shape {images.shape}: give (N, H, W), (N, H, W, C) or (N, C, H, W)")
    if not len(images):
        raise UserError(f"images of {path} is empty: give at least one image")
    if images.ndim == 3:
        return images[:, None]
    # The model's own number of channels is the best sign of which axis holds them, four with transparency the worst.
    convertible = ((1, 3), (4,)) if channels in (1, 3) else ((1,),)
    for accepted in ((channels,), *convertible):
        first, last = images.shape[1] in accepted, images.shape[3] in accepted
        if first and last:
            raise UserError(
                f"images of {path} has the shape {images.shape}, where the channels may be first or last: "
                "resize the images so that one side differs"
            )
        if first or last:
            return images if first else images.transpose(0, 3, 1, 2)
    raise UserError(
        f"images of {path} has the shape {images.shape}, and the model takes {channels} channels: give as many"
    )


def _to_uint8(path: Path, images: np.ndarray) -> np.ndarray:
    if images.dtype == np.uint8:
        return images
    if not np.issubdtype(images.dtype, np.floating):
        raise UserError(f"images of {path} is of type {images.dtype}: give uint8, or floats from 0 to 1")
    # Written so that NaN fails as well.
    if not (images.min() >= 0 and images.max() <= 1):
        raise UserError(
            f"images of {path} goes from {images.min()} to {images.max()}: give uint8, or floats from 0 to 1"
        )
    pixels: np.ndarray = np.rint(images * 255).astype(np.uint8)
    return pixels


def _names_of(path: Path, labels: np.ndarray) -> tuple[list[str], list[str]]:
    try:
        names = [str(label) for label in labels]
    except SystemError as error:  # A string of numpy's may hold numbers that are no characters.
        raise UserError(f"labels of {path} hold what is no text: give integers from 0, or class names") from error
    if labels.dtype.kind == "U":
        return names, sorted(set(names))
    if labels.dtype.kind not in "iu":
        raise UserError(f"labels of {path} is of type {labels.dtype}: give integers from 0, or class names")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= _MOST_CLASSES:
        raise UserError(f"labels of {path} run from {low} to {high}: give integers from 0, or class names")
    return names, [str(index) for index in range(high + 1)]

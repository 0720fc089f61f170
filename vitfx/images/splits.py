"""Data sets: which images calibrate and which evaluate, with labels that are the model's own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from vitfx.images.image_set import Images, ImageSet, hash_order
from vitfx.images.layouts import Layout, Part, read_layout
from vitfx.images.preprocess import Preprocess
from vitfx.support.errors import UserError

__all__ = ["ImageSet", "Images", "Splits", "open_data"]

_EVALUATION_SHARE = 0.2


@dataclass(frozen=True, eq=False)
class Splits:
    """A data set's two disjoint parts."""

    name: str
    calibration: ImageSet  #: for discovery and fitting
    evaluation: ImageSet  #: for the report
    classes: tuple[str, ...] | None  #: what labels are positions in, None where neither model nor data names classes
    description: str  #: a line for the user


def open_data(spec: str, preprocess: Preprocess, classes: Sequence[str] | None = None) -> Splits:
    """Opens a data set; images are decoded later. Without an evaluation part a fixed 20 % of each class is set aside.

    spec: a folder (Tiny ImageNet as folders or as tar files, train/ and val/ with class folders, class folders alone,
        or images alone), an .npz file with `images` and maybe `labels`, or "digits"
    classes: the model's, in the order of its logits; labels are matched with them by name

    Raises UserError for whatever is not usable.
    """
    layout = read_layout(spec, preprocess.channels)
    order = layout.classes if classes is None else tuple(classes)
    sets = [_label(part, order, preprocess) for part in layout.parts]
    if len(sets) == 1:
        sets = _split(sets[0], layout)
        origin = f"a fixed 20 % of {'each class' if sets[0].has_labels else 'the images'}, set aside"
        titles = [layout.parts[0].title or "the images"] * 2
    else:
        origin = "as the data set divides them"
        titles = [part.title for part in layout.parts]
    calibration, evaluation = sets
    description = (
        f"{layout.name}: {len(calibration)} images of {titles[0]} for calibration,"
        f" {len(evaluation)} of {titles[1]} for evaluation ({origin})"
    )
    if layout.left_out:
        description += f"; links to images that are taken already are left out: {_named(layout.left_out)}"
    return Splits(layout.name, calibration, evaluation, order, description)


def _named(links: Sequence[str]) -> str:
    return ", ".join(links[:3]) + (f" and {len(links) - 3} more" if len(links) > 3 else "")


def _label(part: Part, classes: tuple[str, ...] | None, preprocess: Preprocess) -> ImageSet:
    if part.labels is None or classes is None:
        return ImageSet(part.names, part.sources, None, preprocess)
    position = {name: index for index, name in enumerate(classes)}
    used = set(part.labels)
    if unknown := sorted(used - position.keys()):
        raise UserError(
            f"the model does not know the class {unknown[0]!r} of {part.title or 'the data'}"
            f" ({len(unknown)} of {len(used)} classes are unknown to it): name classes as the model does, such as"
            f" {classes[0]!r}"
        )
    if twice := sorted(name for name in used if classes.count(name) > 1):
        raise UserError(f"the model has two classes named {twice[0]!r}: give its classes names that differ")
    return ImageSet(part.names, part.sources, tuple(position[label] for label in part.labels), preprocess)


def _split(images: ImageSet, layout: Layout) -> list[ImageSet]:
    """Sets a fixed 20 % of each class aside, at least one where the class has two."""
    by_class: defaultdict[int, list[int]] = defaultdict(list)
    for index in hash_order(images.names, seed=0):
        by_class[images.labels[index] if images.labels is not None else 0].append(index)
    evaluation: set[int] = set()
    for members in by_class.values():
        share = max(1, round(_EVALUATION_SHARE * len(members))) if len(members) > 1 else 0
        evaluation.update(members[:share])
    if not evaluation:
        raise UserError(f"{layout.name} has one image a class, too few to split: give at least two of a class")
    rest = [index for index in range(len(images)) if index not in evaluation]
    return [images.subset(rest), images.subset(sorted(evaluation))]

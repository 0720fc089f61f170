"""Data sets: which images calibrate and which evaluate, with labels that are the model's own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vitfx.images.classes import Matching, match_classes
from vitfx.images.image_set import Images, ImageSet, hash_order
from vitfx.images.label_files import read_label_file, with_labels
from vitfx.images.layouts import Labels, Layout, Part, read_layout
from vitfx.images.preprocess import Preprocess
from vitfx.images.sources import ArrayImage
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
    remarks: tuple[str, ...] = ()  #: the description's, for reports: how classes were matched, what is missing and why


def open_data(
    spec: str,
    preprocess: Preprocess,
    classes: Sequence[str] | None = None,
    logits: Callable[[], int] | None = None,
    labels: Path | None = None,
) -> Splits:
    """Opens a data set; images are decoded later. Without an evaluation part a fixed 20 % of each class is set aside.

    spec: a folder (Tiny ImageNet as folders or as tar files, train/ and val/ with class folders, class folders alone,
        or images alone), an .npz file with `images` and maybe `labels`, or "digits"
    classes: the model's, in the order of its logits; labels are matched with them by name
    logits: how many the model has, asked where the images have classes; None where there is no model yet
    labels: a file with the images' labels, in place of their folders' names, see `vitfx.images.label_files`

    Raises UserError for whatever is not usable.
    """
    layout = read_layout(spec, preprocess.channels)
    if labels is not None:
        layout = with_labels(layout, read_label_file(labels, layout))
    matching = _match(layout, classes, logits)
    sets = [_label(part, matching, preprocess) for part in layout.parts]
    if len(sets) == 1:
        sets = _split(sets[0], layout)
        origin = f"a fixed 20 % of {'each class' if sets[0].has_labels else 'the images'}, set aside"
        titles = [layout.parts[0].title] * 2
    else:
        origin = "as the data set divides them"
        titles = [part.title for part in layout.parts]
    calibration, evaluation = sets
    description = (
        f"{layout.name}: {len(calibration)} images{_of(titles[0])} for calibration,"
        f" {len(evaluation)}{_of(titles[1])} for evaluation ({origin})"
    )
    rule = matching.rule if matching is not None else ""
    remarks = tuple(filter(None, (rule, _missing(evaluation, layout), *map(_empty, layout.parts))))
    description = "; ".join((description, *remarks))
    if layout.left_out:
        description += f"; links to images that are taken already are left out: {_named(layout.left_out)}"
    if spec == "digits" and Path(spec).is_dir():
        description += "; these are scikit-learn's digits, and the folder of that name here is ./digits"
    order = matching.order if matching is not None else None if classes is None else tuple(classes)
    return Splits(layout.name, calibration, evaluation, order, description, remarks)


def _of(title: str) -> str:
    return f" of {title}" if title else ""


def _match(layout: Layout, classes: Sequence[str] | None, logits: Callable[[], int] | None) -> Matching | None:
    """None where no image has a class."""
    if layout.classes is None:
        return None
    if classes is None and logits is None:
        return Matching({name: index for index, name in enumerate(layout.classes)}, layout.classes)
    # A folder without images is no class of the data where the model's own names say which are.
    labels = {name for part in layout.parts for label in part.labels or () for name in _names(label)}
    names = layout.classes if classes is None else [name for name in layout.classes if name in labels]
    return match_classes(names, classes, None if logits is None else logits(), layout.name)


def _names(label: Labels) -> tuple[str, ...]:
    return (label,) if isinstance(label, str) else label


def _missing(evaluation: ImageSet, layout: Layout) -> str:
    if evaluation.has_labels:
        return ""
    part = layout.parts[-1]
    if isinstance(part.sources[0], ArrayImage):
        return f"top-1 is missing: {layout.name} has no labels"
    return f"top-1 is missing: the images{part.title and f' of {part.title}'} are not in class folders"


def _empty(part: Part) -> str:
    if not part.empty:
        return ""
    plural = len(part.empty) > 1
    return (
        f"the class {'folders' if plural else 'folder'} {_named(part.empty)} of {part.title or 'the data'}"
        f" {'hold' if plural else 'holds'} no images that can be read"
    )


def _named(links: Sequence[str]) -> str:
    return ", ".join(links[:3]) + (f" and {len(links) - 3} more" if len(links) > 3 else "")


def _label(part: Part, matching: Matching | None, preprocess: Preprocess) -> ImageSet:
    labels: tuple[int | tuple[int, ...], ...] | None = None
    if part.labels is not None and matching is not None:
        labels = tuple(_encoded(label, matching) for label in part.labels)
    return ImageSet(part.names, part.sources, labels, preprocess)


def _encoded(label: Labels, matching: Matching) -> int | tuple[int, ...]:
    """The position of a class, or a 0 or 1 for each of all logits."""
    if isinstance(label, str):
        return matching.positions[label]
    own = {matching.positions[name] for name in label}
    return tuple(int(place in own) for place in range(len(matching.order)))


def _split(images: ImageSet, layout: Layout) -> list[ImageSet]:
    """Sets a fixed 20 % of each class aside, at least one where the class has two."""
    by_class: defaultdict[int, list[int]] = defaultdict(list)
    for index in hash_order(images.names, seed=0):
        label = 0 if images.labels is None else images.labels[index]
        # Of several labels nearly every image has a set of its own.
        by_class[label if isinstance(label, int) else 0].append(index)
    evaluation: set[int] = set()
    for members in by_class.values():
        share = max(1, round(_EVALUATION_SHARE * len(members))) if len(members) > 1 else 0
        evaluation.update(members[:share])
    if not evaluation:
        raise UserError(f"{layout.name} has one image a class, too few to split: give at least two of a class")
    rest = [index for index in range(len(images)) if index not in evaluation]
    return [images.subset(rest), images.subset(sorted(evaluation))]

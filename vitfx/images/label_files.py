"""Label files: a CSV with the labels of each image, of which it may have several or none."""

from __future__ import annotations

import csv
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from vitfx.images.classes import normal, sort_names
from vitfx.images.layouts import Labels, Layout, Part
from vitfx.images.sources import ENDINGS
from vitfx.support.errors import UserError
from vitfx.support.reading import read_text

_FORMS = "give lines of file,label,label… or a header with the labels and a 0 or 1 for each"
_BITS = {"0", "1", "0.0", "1.0"}


@dataclass(frozen=True)
class LabelFile:
    """What a file says."""

    path: Path
    labels: dict[str, tuple[str, ...]]  #: of each image, by its path as the file has it
    names: tuple[str, ...]  #: of all labels, in the header's order or sorted

    @property
    def several(self) -> bool:
        """Whether some image has several labels or none, so that these are no classes."""
        return any(len(labels) != 1 for labels in self.labels.values())


def read_label_file(path: Path, layout: Layout) -> LabelFile:
    """Lines of an image's path and its labels, or a header that names two labels or more and lines of 0 and 1.

    Fields are set apart by commas, semicolons or tabs; several labels of one field by |, spaces around them do not
    count. Lines of the same image are taken together in the first form.

    layout: whose images tell a header from a line. Raises UserError.
    """
    lines = _lines(path)
    images = {key for part in layout.parts for name in part.names for key in (*_keys(name, part), *_ends(name))}
    first = lines[0][0].removeprefix("./")
    header = None if first in images or first.lower().endswith(ENDINGS) else lines[0]
    rows = lines[1:] if header else lines
    if not rows:
        raise UserError(f"`labels` {path} has no line for an image of {layout.name}: {_FORMS}")
    columns = [] if header is None else header[1:]
    if len(columns) > 1 and all(len(row) == len(columns) + 1 and set(row[1:]) <= _BITS for row in rows):
        return LabelFile(path, dict(_of_bits(rows, columns, path)), tuple(columns))
    found: defaultdict[str, list[str]] = defaultdict(list)
    for row in rows:
        found[row[0]] += [part for field in row[1:] for part in map(str.strip, field.split("|")) if part]
    labels = {name: tuple(dict.fromkeys(own)) for name, own in found.items()}
    known = {label for own in labels.values() for label in own}
    if known <= _BITS and all(len(row) > 2 for row in rows):
        raise UserError(f"`labels` {path} has a 0 or 1 for each label and no header that names them: {_FORMS}")
    return LabelFile(path, labels, sort_names(known))


def with_labels(layout: Layout, file: LabelFile) -> Layout:
    """The data with these labels in place of its own. Raises UserError where an image has no line."""
    by_path = {name.removeprefix("./"): own for name, own in file.labels.items()}
    by_end: defaultdict[str, list[tuple[str, ...]]] = defaultdict(list)
    for name, own in by_path.items():
        by_end[PurePosixPath(name).name].append(own)
    shared = Counter(end for part in layout.parts for name in part.names for end in _ends(name))

    def labels_of(part: Part, name: str) -> Labels:
        own = next((by_path[key] for key in _keys(name, part) if key in by_path), None)
        if own is None:
            own = _by_end(name, by_end, shared, file.path)
        return own if file.several else own[0]

    parts = [
        replace(part, labels=tuple(labels_of(part, name) for name in part.names), empty=()) for part in layout.parts
    ]
    return replace(layout, parts=tuple(parts), classes=file.names)


def _by_end(
    name: str, by_end: Mapping[str, Sequence[tuple[str, ...]]], shared: Mapping[str, int], path: Path
) -> tuple[str, ...]:
    """By the name alone, where the file and the data have it once. Raises UserError."""
    end = next((end for end in _ends(name) if end in by_end), None)
    if end is None:
        raise UserError(f"`labels` {path} has no line for the image {name}: add one, with no label where it has none")
    if len(by_end[end]) > 1 or shared[end] > 1:
        raise UserError(
            f"`labels` {path} does not say which {end} it means, one of several, and {name} has no line: give paths "
            "below the folder of the data"
        )
    return by_end[end][0]


def _keys(name: str, part: Part) -> Iterator[str]:
    """An image's path in the data and in its part, with and without its ending."""
    path = normal(name)
    for known in (path, path.removeprefix(f"{normal(part.title)}/")):
        yield from (known, str(PurePosixPath(known).with_suffix("")))


def _ends(name: str) -> tuple[str, str]:
    """An image's name without its folders, with and without its ending."""
    path = PurePosixPath(normal(name))
    return path.name, path.stem


def _lines(path: Path) -> list[list[str]]:
    text = read_text(path, f"as `labels` {_FORMS}", encoding="utf-8-sig", errors="surrogateescape")
    first = next((line for line in text.splitlines() if line.strip()), "")
    mark = next((mark for mark in ("\t", ";", ",") if mark in first), ",")
    try:
        rows = [[normal(field.strip()) for field in row] for row in csv.reader(text.splitlines(), delimiter=mark)]
    except csv.Error as error:
        raise UserError(f"`labels` {path} is no table ({error}): {_FORMS}") from error
    rows = [row for row in rows if any(row)]
    if not rows or not any(len(row) > 1 for row in rows):
        raise UserError(f"`labels` {path} has no labels: {_FORMS}")
    return rows


def _of_bits(
    rows: Sequence[Sequence[str]], columns: Sequence[str], path: Path
) -> Iterable[tuple[str, tuple[str, ...]]]:
    seen: set[str] = set()
    for name, *bits in rows:
        if name in seen:
            raise UserError(f"`labels` {path} has two lines for {name}: leave one out")
        seen.add(name)
        yield name, tuple(column for column, bit in zip(columns, bits, strict=True) if float(bit))

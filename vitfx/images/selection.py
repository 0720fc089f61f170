"""Some of a model's classes: which they are, and the images that are of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from vitfx.images.classes import find_places, is_index, normal, words_of
from vitfx.images.image_set import ImageSet
from vitfx.images.splits import Splits
from vitfx.support.errors import UserError

_FEWEST = 2
_SHOWN = 5


@dataclass(frozen=True)
class Selection:
    """The classes that are left of a model, in the order of its new logits."""

    positions: tuple[int, ...]  #: among all logits of the model that they were chosen from
    count: int  #: of all those logits
    every: tuple[str, ...] | None  #: the names of all those logits, None where they have none
    other: str | None = None  #: the name of the logit for all other classes, which is the last; None for no such logit

    @property
    def sentence(self) -> str:
        """For the user."""
        chosen = self.names if self.other is None else self.names[:-1]
        last = "" if self.other is None else f", and {self.other!r} stands for all others"
        return f"{len(self.positions)} of {self.count} classes are kept, {list_names(chosen)}{last}"

    @property
    def names(self) -> tuple[str, ...]:
        """Of the logits, numbers where they have no names."""
        chosen = tuple(str(place) if self.every is None else self.every[place] for place in self.positions)
        return chosen if self.other is None else (*chosen, self.other)

    def then(self, positions: Sequence[int], *, other: bool = False) -> Selection:
        """A choice among these. positions: among these. other: whether all others have a logit. Raises UserError."""
        if other and len(positions) == self.count:
            raise UserError("`other` stands for the classes that are left out, and none are: leave it out")
        chosen = replace(self, positions=tuple(self.positions[place] for place in positions), other=None)
        return replace(chosen, other=_name_of_other(self.every or chosen.names)) if other else chosen

    def renamed(self, names: Sequence[str]) -> Selection:
        """names: of these classes, in their order."""
        every = list(self.every or map(str, range(self.count)))
        chosen, other = (names, None) if self.other is None else (names[:-1], names[-1])
        for place, name in zip(self.positions, chosen, strict=True):
            every[place] = name
        return replace(self, every=tuple(every), other=other)

    def only_images(self, splits: Splits) -> Splits:
        """The images of these classes, whose labels become positions among them; where all others have a logit, as many
        images of theirs, as evenly from all of them as there are, or all that there are.

        Images without labels are all taken to be of these classes, where no part has labels. Raises UserError.
        """
        parts = {"calibration": splits.calibration, "evaluation": splits.evaluation}
        labelled = {role: part for role, part in parts.items() if part.has_labels}
        if labelled and len(labelled) < len(parts):
            (role,) = set(parts) - set(labelled)
            raise UserError(
                f"the images for {role} of {splits.name} have no labels, so those of the {len(self.positions)} chosen "
                "classes can't be told from others: give images in class folders, or `labels`"
            )
        kept = {role: self._of_these(part, splits.name) for role, part in parts.items()}
        said = f"{self.sentence}: "
        if labelled:
            self._check(kept, splits.name)
            counts = " and ".join(f"{len(part):,} for {role}" for role, part in kept.items())
            said += f"{counts} are left of the images{self._missing(kept)}{self._shares(kept)}"
        else:
            said += f"the images of {splits.name} have no labels, and all are taken to be of these classes"
        return replace(
            splits,
            calibration=kept["calibration"],
            evaluation=kept["evaluation"],
            classes=self.names,
            description=f"{splits.description}; {said}",
            remarks=(*splits.remarks, said),
        )

    def to_json(self) -> dict[str, Any]:
        """`from_json` makes it again."""
        names = None if self.every is None else list(self.every)
        record: dict[str, Any] = {"positions": list(self.positions), "count": self.count, "names": names}
        return record if self.other is None else {**record, "other": self.other}

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> Selection:
        """Raises UserError for what `to_json` did not make."""
        try:
            positions, count = tuple(map(int, record["positions"])), int(record["count"])
            every = None if record["names"] is None else tuple(map(str, record["names"]))
            if not all(0 <= place < count for place in positions) or (every is not None and len(every) != count):
                raise ValueError("positions and names do not fit")
        except (TypeError, KeyError, ValueError) as error:
            raise UserError(f"the artifact's record of its classes is damaged ({error}): prune again") from error
        other = record.get("other")
        return Selection(positions, count, every, None if other is None else str(other))

    def _of_these(self, images: ImageSet, where: str) -> ImageSet:
        if images.labels is None:
            return images
        new = {place: index for index, place in enumerate(self.positions)}
        if any(not isinstance(label, int) for label in images.labels):
            raise UserError(f"`classes` is for images of one class each, and those of {where} have several labels")
        chosen = images.subset([index for index, label in enumerate(images.labels) if label in new])
        kept, last = chosen, len(self.positions)
        if self.other is not None:
            others = images.subset([index for index, label in enumerate(images.labels) if label not in new])
            if count := min(len(chosen), len(others)):
                kept = chosen + others.sample(count, seed=0)
        labels = tuple(new.get(label, last) for label in kept.labels or () if isinstance(label, int))
        return replace(kept, labels=labels, half=None if self.other is None else last)

    def _check(self, kept: Mapping[str, ImageSet], where: str) -> None:
        for role, least in (("calibration", 2), ("evaluation", 1)):
            if (count := len(kept[role])) < least:
                raise UserError(
                    f"{where} has {count or 'no'} {'image' if count == 1 else 'images'} of the {len(self.positions)} "
                    f"chosen classes for {role}: give {least} or more"
                )

    def _shares(self, kept: Mapping[str, ImageSet]) -> str:
        """How many images are of all other classes, where these have a logit."""
        if self.other is None:
            return ""
        counts = [f"{Counter(part.labels)[len(self.positions)]:,}" for part in kept.values()]
        return f", {' and '.join(counts)} of them of the other classes"

    def _missing(self, kept: Mapping[str, ImageSet]) -> str:
        """Which classes have no images."""
        said = ""
        for role, part in kept.items():
            counts = Counter(part.labels)
            if none := [name for index, name in enumerate(self.names) if not counts[index]]:
                said += f"; none for {role} of {list_names(none)}"
        return said


def _name_of_other(names: Sequence[str]) -> str:
    """The first of some that no class has."""
    taken = {name.casefold() for name in names}
    numbered = (f"other {number}" for number in range(2, len(names) + 3))
    return next(name for name in ("other", "none of these", *numbered) if name not in taken)


def list_names(names: Sequence[str]) -> str:
    """The first names: "'cat', 'dog' and 8 more"."""
    shown = ", ".join(map(repr, names[:_SHOWN]))
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def read_asked(text: str) -> tuple[str, ...]:
    """The classes in a file, one a line, or between commas. Raises UserError."""
    path = Path(text)
    try:
        if path.is_file():
            lines = path.read_text(encoding="utf-8-sig", errors="surrogateescape").splitlines()
            return tuple(normal(line.strip()) for line in lines if line.strip())
    except OSError as reason:
        raise UserError(f"`classes` {text} can't be read ({reason.strerror}): check the path") from reason
    if path.suffix in (".txt", ".csv", ".lst") and "," not in text:
        raise UserError(f"`classes` {text} is no file: check the path, or give names with commas between them")
    return tuple(normal(part.strip()) for part in text.split(",") if part.strip())


def select_classes(
    asked: Sequence[str | int], every: Sequence[str] | None, count: int, data: str | None = None
) -> tuple[int, ...]:
    """The positions of the classes that were asked for, in the order in which they were.

    asked: names, WordNet ids or words for them, or numbers of logits from 0; text that is a number is first a name.
    every: the names of the logits, None where they have none. count: how many logits there are.
    data: the data set, whose words.txt says in words what WordNet ids are.
    Raises UserError for unknown, ambiguous and repeated ones, and for fewer than two.
    """
    names = tuple(dict.fromkeys(name for name in asked if isinstance(name, str)))
    places: dict[str, set[int]] = {} if every is None else _find_all(names, every, data)
    numbered = every is not None and all(map(is_index, every))
    by_place: dict[int, str | int] = {}
    for name in asked:
        place = _place(name, places, count, every, numbered=numbered)
        if place in by_place:
            if by_place[place] == name:
                raise UserError(f"`classes` names {name!r} twice: give each class once")
            raise UserError(
                f"`classes`: {by_place[place]!r} and {name!r} are both {_called(place, every)}: give each class once; "
                "names that have commas go in a file, one a line"
            )
        by_place[place] = name
    if len(by_place) < _FEWEST:
        raise UserError(
            f"`classes` names {len(by_place) or 'no'} {'class' if len(by_place) == 1 else 'classes'}, which leaves "
            "nothing to tell apart: give at least two"
        )
    return tuple(by_place)


def _find_all(names: Sequence[str], every: Sequence[str], data: str | None) -> dict[str, set[int]]:
    """The places of each name: by the model's names, else by the words for their WordNet ids."""
    places = {name: found for name, (found, _) in find_places(names, every).items()}
    unknown = [name for name in names if name not in places]
    if unknown and (words := words_of(every, data)):
        places |= {name: found for name, (found, _) in find_places(unknown, words).items()}
    return places


def _place(
    name: str | int, places: Mapping[str, set[int]], count: int, every: Sequence[str] | None, *, numbered: bool
) -> int:
    """numbered: whether the logits' names are numbers, which are then no indices."""
    if isinstance(name, str):
        found = places.get(name, set())
        if len(found) == 1:
            return next(iter(found))
        if found and every is not None:
            candidates = " and ".join(repr(every[place]) for place in sorted(found)[:_SHOWN])
            raise UserError(f"`classes`: {name!r} is the name of {len(found)} classes, {candidates}: say which")
    if isinstance(name, int) or (is_index(name) and not numbered):
        if 0 <= int(name) < count:
            return int(name)
        raise UserError(f"`classes`: {name} is none of the model's {count} logits: give numbers from 0 to {count - 1}")
    if every is None:
        raise UserError(
            f"`classes`: the model does not name its {count} logits, so {name!r} is unknown: give numbers of logits "
            "from 0, or their names with `class_names`"
        )
    raise UserError(f"`classes`: the model has no class {name!r}: give names that it has, such as {every[0]!r}")


def _called(place: int, every: Sequence[str] | None) -> str:
    return f"logit {place}" if every is None else f"the class {every[place]!r}"

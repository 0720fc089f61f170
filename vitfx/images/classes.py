"""Names of classes: which folder belongs to which logit."""

from __future__ import annotations

import importlib.util
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vitfx.support.errors import UserError
from vitfx.support.reading import read_text

_WNID = re.compile(r"n\d{8}(?!\d)")
_IMAGENET = 1000
_ADVICE = "give the logits' names with `class_names` FILE, one a line"


@dataclass(frozen=True)
class Matching:
    """Where each class of the data lies among the logits."""

    positions: dict[str, int]
    order: tuple[str, ...]  #: the names of all logits
    rule: str = ""  #: how they were matched, for the user; empty where by their own names


def normal(name: str) -> str:
    """The composed form: macOS writes "é" as two characters, others as one."""
    return unicodedata.normalize("NFC", name)


def sort_names(names: Iterable[str]) -> tuple[str, ...]:
    """Numbers by their value where all names are numbers, all else as text."""
    names = sorted(names)
    return tuple(sorted(names, key=int) if all(map(is_index, names)) else names)


def read_class_names(path: Path) -> tuple[str, ...]:
    """One name a line, in the order of the logits; raises UserError."""
    advice = "give `class_names` a file with a name on each line"
    lines = read_text(path, advice, encoding="utf-8-sig", errors="surrogateescape").splitlines()
    return tuple(normal(line.strip()) for line in lines if line.strip())


def match_classes(data: Sequence[str], model: Sequence[str] | None, logits: int | None, where: str) -> Matching:
    """Matches by name where the model names its classes, else by index, WordNet id or, the numbers being equal, place.

    data: the names of the data's classes, in their own order
    model: the names of the logits in order, None where they are not known
    logits: how many there are, None where that is not known
    where: the data, for messages

    Raises UserError.
    """
    if model is not None and logits is not None and logits != len(model):
        raise UserError(f"the model has {logits} logits and names for {len(model)} classes: {_ADVICE}")
    if (imagenet := _imagenet(data, model, len(model) if model else logits)) is not None:
        places = {wnid: index for index, wnid in enumerate(imagenet)}
        if len({_wnid(name) for name in data}) == len(data):
            positions = {name: places[_wnid(name)] for name in data}
            return Matching(positions, imagenet, "classes are matched with ImageNet-1k's by WordNet id")
    if model is not None:
        return _by_name(data, tuple(model), where)
    if (by_index := _by_index(data, logits)) is not None:
        return by_index
    if logits is not None and logits != len(data):
        raise UserError(
            f"{where} has {len(data)} classes and the model {logits} logits, which have no names (the classes are "
            f"{_ends(data)}): name the logits in their order with `class_names` FILE, one name a line, give images "
            "without class folders, or say with `task` what its numbers are, if no logits"
        )
    rule = f"the model does not name its {len(data)} logits: they are taken to be the classes in order, {_ends(data)}"
    return Matching({name: index for index, name in enumerate(data)}, tuple(data), rule)


def find_places(names: Iterable[str], model: Sequence[str]) -> dict[str, tuple[set[int], str]]:
    """The places of each name among the model's names, and by which rule; a name that has none is left out.

    The strictest rule by which there is one place counts, else the strictest by which there are several.
    """
    places: dict[str, tuple[set[int], str]] = {}
    names = tuple(names)
    for rule, keys in _LEVELS:
        unsettled = [name for name in names if name not in places or len(places[name][0]) > 1]
        index = _index(model, keys) if unsettled else {}
        for name in unsettled:
            own = set[int]().union(*(index.get(key, set()) for key in keys(name)))
            if len(own) == 1 or (own and name not in places):
                places[name] = own, rule
    return places


def _by_name(data: Sequence[str], model: tuple[str, ...], where: str) -> Matching:
    positions: dict[str, int] = {}
    rules: list[str] = []
    for name, (places, rule) in find_places(data, model).items():
        if len(places) == 1:
            positions[name] = next(iter(places))
            rules.append(rule)
        elif not rule:
            raise UserError(f"the model has two classes named {name!r}: give its classes names that differ")
    unknown = [name for name in data if name not in positions]
    if unknown:
        raise UserError(
            f"the model does not know the class {unknown[0]!r} of {where} ({len(unknown)} of {len(data)} classes are "
            f"unknown to it): name classes as the model does, such as {model[0]!r}, or {_ADVICE}"
        )
    by_place: dict[int, str] = {}
    for name, place in positions.items():
        if place in by_place:
            raise UserError(
                f"{by_place[place]!r} and {name!r} of {where} are both the class {model[place]!r}: merge them"
            )
        by_place[place] = name
    said = sorted(set(rules) - {""})
    return Matching(positions, model, f"classes are matched by name ({', '.join(said)})" if said else "")


def _by_index(data: Sequence[str], logits: int | None) -> Matching | None:
    """None where the names are not the logits' indices; 1 to n are those of n + 1 logits, or of more, only perhaps."""
    if not all(map(is_index, data)):
        return None
    indices = [int(name) for name in data]
    size = max(indices) + 1 if logits is None else logits
    counted_from_1 = sorted(indices) == list(range(1, len(data) + 1))
    if max(indices) >= size or len(set(indices)) < len(data) or counted_from_1:
        return None
    order = tuple(str(index) for index in range(size))
    return Matching(dict(zip(data, indices, strict=True)), order, "its classes are numbers of logits, counted from 0")


def _index(model: Sequence[str], keys: Callable[[str], set[str]]) -> dict[str, set[int]]:
    index: defaultdict[str, set[int]] = defaultdict(set)
    for place, name in enumerate(model):
        for key in keys(name):
            index[key].add(place)
    return dict(index)


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", " ", normal(name).casefold()).strip()


def _without_empty(*keys: str) -> set[str]:
    return set(keys) - {""}


def _wnid(name: str) -> str:
    found = _WNID.match(name)
    return found[0] if found else ""


# From the strictest on: what the user is told, and the keys of a name, of which one must be shared.
_LEVELS: tuple[tuple[str, Callable[[str], set[str]]], ...] = (
    ("", lambda name: {normal(name)}),
    ("as numbers", lambda name: {str(int(name))} if is_index(name) else set()),
    ("without regard to case and punctuation", lambda name: _without_empty(_plain(name))),
    ("by WordNet id", lambda name: _without_empty(_wnid(name))),
    ("by one of several names", lambda name: _without_empty(*map(_plain, name.split(",")))),
)


def _imagenet(data: Sequence[str], model: Sequence[str] | None, logits: int | None) -> tuple[str, ...] | None:
    """ImageNet-1k's WordNet ids, where the data's classes are some of them and the logits are those of ImageNet-1k.

    timm has the list; without it the answer is None.
    """
    if logits != _IMAGENET or not all(map(_wnid, data)) or (info := _imagenet_info("imagenet-1k")) is None:
        return None
    known = tuple(info.index_to_label_name(place) for place in range(_IMAGENET))
    if not {_wnid(name) for name in data} <= set(known):
        return None
    # Spellings of a few names differ from library to library.
    described = [_plain(info.index_to_description(place)) for place in range(_IMAGENET)]
    alike = sum(_plain(name) == ours for name, ours in zip(model or described, described, strict=True))
    return known if alike >= 0.9 * _IMAGENET else None


def imagenet_ids(names: Sequence[str], logits: int) -> tuple[str, ...] | None:
    """ImageNet-1k's WordNet ids, where these names are some of them, the logits are as many, and nothing names them."""
    return _imagenet(names, None, logits) if names else None


def words_of(names: Sequence[str], data: str | None) -> tuple[str, ...]:
    """What each WordNet id means in words, "" for what is none; empty where nothing is known of any.

    data: a data set, whose words.txt (Tiny ImageNet's) or LOC_synset_mapping.txt (ImageNet's) is read where it has
    one; else timm's list is, where that is installed.
    """
    ids = [_wnid(name) for name in names]
    if not any(ids):
        return ()
    words: dict[str, str] = {}
    for file in () if data is None else (Path(data) / "words.txt", Path(data) / "LOC_synset_mapping.txt"):
        if file.is_file():
            lines = file.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
            words |= {parts[0]: parts[1] for line in lines if len(parts := line.split(None, 1)) == 2}
    if not words and (info := _imagenet_info("imagenet-22k")) is not None:
        words = info.label_descriptions(as_dict=True)
    described = tuple(normal(words.get(own, "")) for own in ids)
    return described if any(described) else ()


def _imagenet_info(subset: str) -> Any:
    """timm's record of ImageNet's classes, None where timm is not installed."""
    if importlib.util.find_spec("timm") is None:
        return None
    from timm.data.imagenet_info import ImageNetInfo

    return ImageNetInfo(subset)


def is_index(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _ends(names: Sequence[str]) -> str:
    """The first and last of some names: "0 'cat', 1 'dog' … 9 'whale'"."""
    listed = [f"{index} {name!r}" for index, name in enumerate(names)]
    return ", ".join(listed) if len(names) <= 5 else f"{', '.join(listed[:3])} … {listed[-1]}"

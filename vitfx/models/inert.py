"""Pickled objects of any class, read as inert stand-ins: what a file names is neither imported nor called.

Training scripts save their options (an argparse.Namespace, a configuration), paths and numpy scalars beside the
weights, which torch's weights_only unpickler refuses. Here it reads them as stand-ins that only hold what they are
given; it still builds nothing else, and refuses the modules of the operating system.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

# For each that torch's scan does not find, the file is read again.
_MOST = 500
_SHOWN = 3
_DEPTH = 12


class Inert:
    """Stands for an object of a class that is not read; the classes are its subclasses."""

    title = ""  #: the name of the class in the file

    def __new__(cls, *arguments: object, **_: object) -> Any:
        made = super().__new__(cls)
        made.__setstate__(arguments)
        return made

    def __init__(self, *_: object, **__: object) -> None:
        """The arguments are of no use."""

    def __setstate__(self, state: object) -> None:
        self.held: list[object] = [*getattr(self, "held", ()), state]


class _InertList(list[Any]):
    """Stands for what has items: a list, a deque."""

    def __new__(cls, *_: object, **__: object) -> Any:
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        super().__init__()

    def __setstate__(self, state: object) -> None:
        """Beside its items it needs nothing."""


class _InertMapping:
    """Stands for a mapping, which becomes a plain one, as torch sets the items of no other."""

    def __new__(cls, *_: object, **__: object) -> Any:
        return OrderedDict()


class PickledCodeError(Exception):
    """The classes and functions that keep a file from being read, in a few words."""


def read_without_code(path: Path, refusal: Exception) -> Any:
    """What torch.save wrote at `path`, on the CPU, with `Inert` in place of objects other than tensors and containers.

    refusal: of torch.load with weights_only=True, naming the first of these.
    Raises PickledCodeError where it can't be read, and where all tensors lie in such objects, as in a pickled module.
    """
    kinds: dict[str, type] = {}
    while len(kinds) < _MOST and _learn(kinds, refusal):
        kinds = dict.fromkeys(_scanned(path), Inert) | kinds
        try:
            contents = _read(path, kinds)
        except Exception as error:  # A broken pickle raises whatever its bytes happen to mean.
            refusal = error
            continue
        objects = dict(_objects(contents))
        within = any(map(holds_tensors, _plain(contents))) and not any(map(_is_state_dict, _plain(contents)))
        if _is_inert(contents) or within:
            raise PickledCodeError(_listed([title for title, _ in _first_places(objects)]))
        return contents
    raise PickledCodeError(pickled_code(refusal) or _listed(sorted(kinds)))


def pickled_code(error: Exception) -> str | None:
    """The function or class for which torch refused a pickle, where its message names one.

    Only the message does, so None says nothing about the file.
    """
    named = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
    return named and named[1]


def skipped_note(contents: Any) -> str | None:
    """What in `contents` was not read, as part of a sentence."""
    places = _first_places(dict(_objects(contents)))
    if not places:
        return None
    parts = [
        f"`{'.'.join(keys)}` holds {'an' if title[:1].lower() in 'aeiou' else 'a'} {title}"
        for title, keys in places[:_SHOWN]
    ]
    more = f" and {len(places) - _SHOWN} other kinds of objects" if len(places) > _SHOWN else ""
    return f"{', '.join(parts)}{more}, which {'is' if len(places) == 1 else 'are'} not read"


def holds_tensors(value: Any) -> bool:
    """Whether there are tensors in an `Inert`, at any depth."""
    return isinstance(value, Inert) and any(
        isinstance(part, torch.Tensor) for part in _plain(value.__dict__, inside=True)
    )


def _scanned(path: Path) -> list[str]:
    """What torch's own scan names, which knows zip files alone."""
    try:
        return get_unsafe_globals_in_checkpoint(path)
    except Exception:  # The attempts to read it find out in any case.
        return []


def _learn(kinds: dict[str, type], refusal: Exception) -> bool:
    """Whether the refusal says which class is missing, or has items of its own."""
    if not isinstance(refusal, pickle.UnpicklingError) or "is blocked" in str(refusal):
        return False
    if unsuited := re.search(r"Can only (SETITEM|append).*<class '(.+)'>", str(refusal)):
        name, kind = unsuited[2], _InertMapping if unsuited[1] == "SETITEM" else _InertList
        learnt = kinds.get(name) is Inert
    else:
        # torch leaves out the module of built-in functions.
        code = pickled_code(refusal) or ""
        name, kind = code if "." in code else f"builtins.{code}", Inert
        learnt = bool(code) and name not in kinds
    kinds |= {name: kind} if learnt else {}
    return learnt


def _read(path: Path, kinds: Mapping[str, type]) -> Any:
    # torch's message names a class that does not suit, so each has the name that the file gives it.
    stands: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
        (type(name.rpartition(".")[2], (kind,), {"__module__": name.rpartition(".")[0], "title": name}), name)
        for name, kind in kinds.items()
    ]
    with warnings.catch_warnings(), safe_globals(stands):
        warnings.simplefilter("ignore", UserWarning)
        return torch.load(path, map_location="cpu", weights_only=True)


def _is_inert(value: object) -> bool:
    return isinstance(value, Inert) or (isinstance(value, type) and issubclass(value, Inert))


def _objects(value: Any, keys: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], str]]:
    """Where in mappings and lists there are stand-ins, and for which classes."""
    if _is_inert(value):
        yield keys, value.title
    elif len(keys) > _DEPTH:
        return
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield from _objects(part, (*keys, str(name)))
    elif isinstance(value, list | tuple):
        for number, part in enumerate(value):
            yield from _objects(part, (*keys, str(number)))


def _first_places(objects: Mapping[tuple[str, ...], str]) -> list[tuple[str, tuple[str, ...]]]:
    """Each class with the first place where it is."""
    first: dict[str, tuple[str, ...]] = {}
    for keys, title in objects.items():
        first.setdefault(title, keys)
    return list(first.items())


def _plain(value: Any, *, inside: bool = False) -> Iterator[Any]:
    """All that mappings and lists hold, each once; `inside` stand-ins also."""
    known: set[int] = set()
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if id(part) in known:
            continue
        known.add(id(part))
        yield part
        if isinstance(part, Mapping):
            waiting += part.values()
        elif isinstance(part, list | tuple):
            waiting += part
        elif inside and isinstance(part, Inert):
            waiting.append(part.__dict__)


def _is_state_dict(value: Any) -> bool:
    """Whether it has tensors by names of parts, which an optimizer's state does not."""
    return isinstance(value, Mapping) and any(
        isinstance(name, str) and "." in name and isinstance(part, torch.Tensor) for name, part in value.items()
    )


def _listed(titles: list[str]) -> str:
    return ", ".join(titles[:_SHOWN]) + (f" and {len(titles) - _SHOWN} more" if len(titles) > _SHOWN else "")

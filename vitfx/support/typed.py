"""Values read from files, held against the types that they should have: what is wrong is said by its place."""

from __future__ import annotations

import types
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, NotRequired, Union, get_args, get_origin, get_type_hints, is_typeddict

from vitfx.support.errors import in_a_line

_NAMES = {
    int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null",
    list: "a list", tuple: "a list", dict: "an object",
}  # fmt: skip


_LARGEST = 2**1023
"""Beyond it a whole number may be no float."""


class TypeMismatch(ValueError):
    """A value of another type than it should have; the sentence says where, which, and what should be there."""


def typed(value: Any, hint: Any, place: str = "the record") -> Any:
    """The value, where it is of this type, with lists as tuples where the type says so.

    hint: bool, int, str, None, float (whole numbers as well), Any, unions, list[X], tuple[X, Y], tuple[X, ...],
        dict[str, X], or a TypedDict, whose other keys are kept as they are. A bool is no number.
    place: what the value is, for messages. Raises TypeMismatch.
    """
    origin, inside = get_origin(hint), get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _one_of(value, inside, place)
    if is_typeddict(hint):
        return _fields(value, hint, place)
    if origin is list and isinstance(value, list):
        return [typed(part, inside[0], f"{place}[{index}]") for index, part in enumerate(value)]
    if origin is tuple and isinstance(value, list | tuple):
        return _tuple(value, inside, place)
    if origin is dict and isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {name: typed(part, inside[1], f"{place}.{name}") for name, part in value.items()}
    if hint is float and (type(value) is float or (type(value) is int and abs(value) < _LARGEST)):
        return value
    if hint in (None, type(None)) and value is None:
        return None
    if hint is not float and type(value) is hint:
        return value
    raise TypeMismatch(f"{in_a_line(place)} is {in_a_line(repr(value))[:80]}, not {_name(hint)}")


def _one_of(value: Any, hints: tuple[Any, ...], place: str) -> Any:
    others = [hint for hint in hints if hint is not type(None)]
    if value is None and len(others) < len(hints):
        return None
    if len(others) == 1:
        return typed(value, others[0], place)
    for hint in others:
        with suppress(TypeMismatch):
            return typed(value, hint, place)
    raise TypeMismatch(f"{in_a_line(place)} is {in_a_line(repr(value))[:80]}, not {' or '.join(map(_name, hints))}")


def _tuple(value: list[Any] | tuple[Any, ...], hints: tuple[Any, ...], place: str) -> tuple[Any, ...]:
    if hints[1:] == (...,):
        hints = hints[:1] * len(value)
    if len(hints) != len(value):
        raise TypeMismatch(f"{in_a_line(place)} has {len(value)} parts, not {len(hints)}")
    return tuple(
        typed(part, hint, f"{place}[{index}]") for index, (part, hint) in enumerate(zip(value, hints, strict=True))
    )


def _fields(value: Any, hint: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeMismatch(f"{in_a_line(place)} is {in_a_line(repr(value))[:80]}, not an object")
    hints = get_type_hints(hint, include_extras=True)
    # Not what the class calls required: it can't tell where annotations are text.
    if absent := [name for name, kind in hints.items() if get_origin(kind) is not NotRequired and name not in value]:
        raise TypeMismatch(f"{in_a_line(place)} has no {absent[0]}")
    own = {name: get_args(kind)[0] if get_origin(kind) is NotRequired else kind for name, kind in hints.items()}
    return {name: typed(part, own.get(name, Any), f"{place}.{name}") for name, part in value.items()}


def _name(hint: Any) -> str:
    kind = get_origin(hint) or hint
    return _NAMES.get(type(None) if kind is None else kind, "an object")

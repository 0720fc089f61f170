"""Records as their classes describe them: fields, with types and the comments that begin with "#:"."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any, is_typeddict


@dataclass(frozen=True)
class Field:
    """Of a dataclass or a TypedDict."""

    name: str
    type: str  #: as the source has it
    meaning: str  #: empty where the source says nothing
    default: str = ""  #: as the source has it, empty for none

    def to_markdown(self) -> str:
        """A line of a list."""
        kind = re.sub(r"NotRequired\[(.*)\]", r"\1", self.type)
        facts = [f"`{kind}`", *(["not always there"] if kind != self.type else [])]
        facts += [f"by default `{self.default}`"] if self.default else []
        return f"- `{self.name}` ({', '.join(facts)})" + (f": {self.meaning}" if self.meaning else "")


def fields_of(record: Any) -> list[Field]:
    """In the order of the source, those of base classes first. record: the class."""
    module = sys.modules[record.__module__]
    lines = inspect.getsource(module).splitlines()
    for node in ast.parse("\n".join(lines)).body:
        if isinstance(node, ast.ClassDef) and node.name == record.__name__:
            bases = [getattr(module, base.id) for base in node.bases if isinstance(base, ast.Name)]
            inherited = [field for base in bases if is_record(base) for field in fields_of(base)]
            return inherited + list(_annotated(node, lines, module))
        # TypedDict("Details", {"held out": …}), for keys that are no identifiers
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call) and _names(node) == [record.__name__]:
            return list(_listed(node.value, lines))
    raise AssertionError(f"{record.__name__} is not a class of {record.__module__}")


def is_record(value: Any) -> bool:
    """Whether it is a dataclass or a TypedDict of this project."""
    own = str(getattr(value, "__module__", "")).startswith(("vitfx.", "passes."))
    return own and (is_typeddict(value) or (isinstance(value, type) and dataclasses.is_dataclass(value)))


def records_in(record: Any) -> list[Any]:
    """The record's class and those of the project that its fields are of, and so on, each once."""
    found = [record]
    for each in found:
        module = sys.modules[each.__module__]
        words = [word for field in fields_of(each) for word in re.findall(r"\w+", field.type)]
        inner = [getattr(module, word, None) for word in words]
        found += [value for value in dict.fromkeys(filter(is_record, inner)) if value not in found]
    return found


def _annotated(node: ast.ClassDef, lines: list[str], module: ModuleType) -> Iterator[Field]:
    for statement in node.body:
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
            default = "" if statement.value is None else ast.unparse(statement.value)
            default = "" if default.startswith("field(") else _value(module, default)
            meaning = _comment(lines, statement.lineno, statement.end_lineno or statement.lineno)
            yield Field(statement.target.id, ast.unparse(statement.annotation), meaning, default)


def _value(module: ModuleType, default: str) -> str:
    """What a default is that the source gives by a constant's name."""
    value = getattr(module, default, None)
    return repr(value) if isinstance(value, str | int | float) else default


def _listed(call: ast.Call, lines: list[str]) -> Iterator[Field]:
    entries = next(argument for argument in call.args if isinstance(argument, ast.Dict))
    for key, value in zip(entries.keys, entries.values, strict=True):
        if isinstance(key, ast.Constant):
            yield Field(
                str(key.value), ast.unparse(value), _comment(lines, value.lineno, value.end_lineno or value.lineno)
            )


def _names(node: ast.Assign) -> list[str]:
    return [target.id for target in node.targets if isinstance(target, ast.Name)]


def _comment(lines: list[str], first: int, last: int) -> str:
    """The "#:" beside lines first to last, counted from 1, or on lines of its own above them."""
    if beside := re.search(r"#: (.*)", lines[last - 1]):
        return beside[1]
    above = []
    while (line := lines[first - 2].strip()).startswith("#: "):
        above.append(line.removeprefix("#: "))
        first -= 1
    return " ".join(reversed(above))

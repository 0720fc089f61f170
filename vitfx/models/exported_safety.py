"""Copies a torch.export archive without anything that could run as code.

`torch.export.load` (torch 2.14, torch/export/pt2_archive/_package.py and torch/_export/serde/serialize.py) unpickles
sample inputs, tensor subclasses and custom objects with weights_only=False, loads compiled libraries, evaluates shape
expressions as Python (sympify), takes any attribute of torch as an operator, and writes names from the file into
generated Python code. So only tensors are copied, and a graph in which every operator, name and expression is of a
harmless kind.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

GRAPH_MEMBER = "models/model.json"
_EXAMPLE_INPUTS = "data/sample_inputs/model.pt"
_TENSOR_LISTS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_TENSOR = re.compile(r"(?:weight|tensor)_\d+")
_KEPT = re.compile(rf"archive_format|archive_version|byteorder|\.data/\w+|data/(?:weights|constants)/{_TENSOR.pattern}")
_LEFT_OUT = re.compile(r"extra/.*|data/sample_inputs/.*")
_NAME = re.compile(r"[\w.@]*")
_VERSION = re.compile(r"[\w.+]*")
# What torch writes for dimensions: Symbol('s31', positive=True, integer=True), Mul(Integer(192), …), and the like.
_SYMBOLS = (
    "Symbol|Integer|Rational|Add|Mul|Pow|Max|Min|Mod|PythonMod|FloorDiv|CleanDiv|CeilDiv|IntTrueDiv|Identity|"
    "Eq|Ne|Lt|Le|Gt|Ge|True|False|true|false|positive|nonnegative|integer|evaluate"
)
_EXPRESSION = re.compile(rf"(?:'[a-z]+\d+'|\b(?:{_SYMBOLS})\b|\b[su]\d+\b|\b\d+\b|[-+*/(),=<>\s])*")
_TREE_TYPES = (None, "builtins.tuple", "builtins.list", "builtins.dict")
_TREE_CONTEXT = re.compile(r'[\w\[\]", .]*')
_PYTHON_OPERATORS = re.compile(
    r"_operator\.(?:add|sub|mul|floordiv|truediv|mod|neg|pow|getitem|eq|ne|lt|le|gt|ge|and_|or_)"
)
_TORCH_FUNCTIONS = ("torch.sym_int", "torch.sym_max", "torch.sym_min", "torch.sym_not")
# These aten operators read or write files.
_FILE_OPERATORS = ("from_file", "save")


class UnsafeError(Exception):
    """The part of an archive that could run as code, in a few words."""


def without_code(path: Path) -> io.BytesIO:
    """A copy of the archive with every part checked; raises UnsafeError."""
    copy = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copy, "w") as out:
        root = archive.namelist()[0].partition("/")[0]
        for member in archive.namelist():
            part = member.removeprefix(f"{root}/")
            if part == _EXAMPLE_INPUTS:
                # A pickle that nothing needs.
                out.writestr(f"model/{part}", b"")
            elif part == GRAPH_MEMBER:
                out.writestr(f"model/{part}", json.dumps(_checked(json.loads(archive.read(member)), "")))
            elif part in _TENSOR_LISTS:
                tensors = archive.read(member)
                _check_tensor_list(json.loads(tensors))
                out.writestr(f"model/{part}", tensors)
            elif _KEPT.fullmatch(part):
                out.writestr(f"model/{part}", archive.read(member))
            elif not _LEFT_OUT.fullmatch(part):
                raise UnsafeError(f"the part {part!r}")
    copy.seek(0)
    return copy


def _check_tensor_list(record: dict[str, Any]) -> None:
    for name, entry in record["config"].items():
        if entry["use_pickle"] is not False or not _TENSOR.fullmatch(entry["path_name"]):
            raise UnsafeError(f"the pickled object {name!r}")
        if not _NAME.fullmatch(name):
            raise UnsafeError(f"the tensor name {name!r}")


def _checked(value: Any, key: str) -> Any:
    """`value` of the graph's JSON under `key`, without notes for debugging; raises UnsafeError."""
    if key == "metadata":
        return {}
    if key == "guards_code":
        return []
    if isinstance(value, dict):
        for name in value:
            _check_text(name, "")
        return {name: _checked(part, name) for name, part in value.items()}
    if isinstance(value, list):
        return [_checked(part, key) for part in value]
    if isinstance(value, str):
        _check_text(value, key)
    return value


def _check_text(text: str, key: str) -> None:
    if key in ("target", "as_operator"):
        safe = _is_safe_operator(text)
    elif key in ("in_spec", "out_spec"):
        safe = not text or _is_safe_tree(json.loads(text))
    elif key == "expr_str":
        safe = _EXPRESSION.fullmatch(text) is not None
    elif key in ("as_string", "as_strings"):
        # Arguments of operators: they are quoted wherever they are written.
        safe = True
    else:
        safe = (_VERSION if key == "torch_version" else _NAME).fullmatch(text) is not None
    if not safe:
        raise UnsafeError(f"the {key or 'name'} {text[:60]!r}")


def _is_safe_operator(text: str) -> bool:
    if text in _TORCH_FUNCTIONS or _PYTHON_OPERATORS.fullmatch(text):
        return True
    namespace, _, name = text.rpartition("torch.ops.aten.")
    operator, _, overload = name.partition(".")
    if namespace or operator in _FILE_OPERATORS:
        return False
    return isinstance(getattr(getattr(torch.ops.aten, operator, None), overload, None), torch._ops.OpOverload)


def _is_safe_tree(tree: object) -> bool:
    match tree:
        case [int(), inner]:
            return _is_safe_tree(inner)
        case {"type": type_name, "context": str() | None as context, "children_spec": list() as children}:
            is_known = type_name in _TREE_TYPES and _TREE_CONTEXT.fullmatch(context or "") is not None
            return is_known and all(map(_is_safe_tree, children))
    return False

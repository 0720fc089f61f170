"""The Python API: signatures and docstrings."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any

from benchmarks.pages.classes import fields_of, is_record
from benchmarks.pages.docstrings import markdown_of
from passes.base import Pass, PassResult, run_passes
from passes.plan import DeletionPlan, SublayerDeletion
from passes.stream import Site, read_sites
from vitfx.circuits.circuit import Circuit, Decision, Edge, Reader, Writer, read_circuit
from vitfx.discover import discover
from vitfx.graph.trace import Traced, to_canonical
from vitfx.images.preprocess import Preprocess
from vitfx.models.checkpoint import LoadedModel, load_model, save_checkpoint
from vitfx.optimize import optimize
from vitfx.prune import prune
from vitfx.runs.in_memory import DiscoverySettings, PrunedModel
from vitfx.runs.optimize_in_memory import OptimizedModel
from vitfx.support.errors import UserError

_SECTIONS: dict[str, tuple[Any, ...]] = {
    "Functions": (prune, optimize, discover),
    "What they take and return": (DiscoverySettings, PrunedModel, OptimizedModel),
    "Circuits and plans": (Circuit, Decision, Edge, Writer, Reader, read_circuit, DeletionPlan, SublayerDeletion),
    "Model files": (load_model, LoadedModel, save_checkpoint, Preprocess),
    "Graphs and passes": (to_canonical, Traced, read_sites, Site, Pass, PassResult, run_passes),
    "Errors": (UserError,),
}
_DOORS = (prune, optimize, discover)
"""Functions that are modules as well: `vitfx.prune` is `vitfx.prune.prune`."""
_HEAD = """# Python

`import vitfx` gives the three functions and `vitfx.errors`; everything else is imported from the module named with it.
Whatever is not on this page may change without notice.
"""


def page() -> str:
    lines = [_HEAD]
    for heading, values in _SECTIONS.items():
        lines += [f"## {heading}", ""]
        for value in values:
            lines += [*(_class(value) if isinstance(value, type) else _function(value)), ""]
    return "\n".join(lines)


def _function(function: Callable[..., Any]) -> Iterator[str]:
    name = f"vitfx.{function.__name__}" if function in _DOORS else f"{function.__module__}.{function.__name__}"
    yield from (f"### {name}", "", "```python", *_signature(function), "```", "", *markdown_of(function))


def _class(value: type) -> Iterator[str]:
    yield from (f"### {value.__module__}.{value.__name__}", "", *markdown_of(value))
    if is_record(value):
        yield from ("", *(field.to_markdown() for field in fields_of(value)))
    for name, member in vars(value).items():
        function = member.__func__ if isinstance(member, staticmethod) else member
        if name.startswith("_") or not getattr(function, "__doc__", None):
            continue
        if isinstance(member, property):
            yield from ("", f"`{name}`", "", *markdown_of(member))
        elif inspect.isfunction(function):
            yield from ("", "```python", *_signature(function), "```", "", *markdown_of(function))


def _signature(function: Callable[..., Any]) -> list[str]:
    """As in the source, in one line where it fits."""
    signature = inspect.signature(function)
    parts: list[str] = []
    named = False
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and not named:
            parts.append("*")
        named = named or parameter.kind is parameter.KEYWORD_ONLY
        stars = "**" if parameter.kind is parameter.VAR_KEYWORD else ""
        annotation = "" if parameter.annotation is parameter.empty else f": {parameter.annotation}"
        default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
        parts.append(f"{stars}{parameter.name}{annotation}{default}")
    result = f") -> {signature.return_annotation}"
    if len(line := f"{function.__name__}({', '.join(parts)}{result}") <= 100:
        return [line]
    return [f"{function.__name__}(", *(f"    {part}," for part in parts), result]

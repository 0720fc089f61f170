"""What a pass is: a graph in, a graph out, an honest word on whether anything changed.

A pass states what it requires of a graph and what it ensures. `run_passes` works on a copy, lints and recompiles
after every pass, drops what nothing calls any more, and names the pass when something fails.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch.fx import GraphModule

Property = Callable[[GraphModule], None]
"""Raises `PassError`, saying what is wrong, where a graph lacks the property."""


class PassError(Exception):
    """A graph is not what a pass needs, or not what it promised; one sentence says where and why."""


@dataclass(frozen=True)
class PassResult:
    """graph_module: the graph after the pass. changed: whether it differs from the one before. notes: for people."""

    graph_module: GraphModule
    changed: bool
    notes: tuple[str, ...] = ()


class Pass(ABC):
    """One rewrite. Subclasses change the graph module that they are given, in place, and return it."""

    requires: ClassVar[tuple[Property, ...]] = ()
    ensures: ClassVar[tuple[Property, ...]] = ()

    @property
    def name(self) -> str:
        return type(self).__name__

    @abstractmethod
    def rewrite(self, graph_module: GraphModule) -> PassResult: ...


def run_passes(graph_module: GraphModule, passes: Sequence[Pass]) -> PassResult:
    """Runs the passes in order on a copy; the graph module given stays as it is.

    Raises PassError, with the pass's name in front, where a requirement, the lint or a promise fails.
    """
    current = copy.deepcopy(graph_module)
    changed = False
    notes: list[str] = []
    for one in passes:
        result = _run_one(current, one)
        current = result.graph_module
        changed = changed or result.changed
        notes.extend(f"{one.name}: {note}" for note in result.notes)
    return PassResult(current, changed, tuple(notes))


def _run_one(graph_module: GraphModule, one: Pass) -> PassResult:
    try:
        for has in one.requires:
            has(graph_module)
        result = one.rewrite(graph_module)
        result.graph_module.delete_all_unused_submodules()
        result.graph_module.graph.lint()
        result.graph_module.recompile()
        for has in one.ensures:
            has(result.graph_module)
    except PassError as error:
        raise PassError(f"{one.name}: {error}") from error
    except Exception as error:
        raise PassError(f"{one.name} failed: {type(error).__name__}: {error}") from error
    return result

"""What a pass is: a graph in, a graph out, an honest word on whether anything changed.

A pass states what it requires of a graph, what it ensures, and whether it works in place. `run_passes` works on a copy,
holds every pass to its word, drops what nothing calls any more, and names the pass when something fails.
"""

from __future__ import annotations

import copy
import itertools
import re
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch.fx import GraphModule

Property = Callable[[GraphModule], None]
"""Raises `PassError`, saying what is wrong, where a graph lacks the property."""


class PassError(Exception):
    """A graph that a pass can't take, or a pass that failed; one sentence says where and why."""

    def __init__(self, reason: str, pass_name: str = "") -> None:
        super().__init__(f"{pass_name}: {reason}" if pass_name else reason)
        self.reason = reason  #: the sentence without the pass's name


class RequirementError(PassError):
    """The graph lacks a property that the pass requires."""


class PromiseError(PassError):
    """The pass broke its word: a property that it ensures, the graph's lint, `in_place` or `changed`."""


class RewriteError(PassError):
    """The rewrite itself failed or refused the graph."""


@dataclass(frozen=True)
class PassResult:
    """What a pass made."""

    graph_module: GraphModule  #: the graph after the pass
    changed: bool  #: whether it differs from the one before
    notes: tuple[str, ...] = ()  #: what was done, or why nothing was, for people


class Pass(ABC):
    """One rewrite. The constructor's arguments are its options."""

    name: ClassVar[str]  #: the class's name in snake_case
    in_place: ClassVar[bool] = True  #: it returns the graph module that it was given; if not, it leaves that one alone
    requires: ClassVar[tuple[Property, ...]] = ()  #: checked before the rewrite
    ensures: ClassVar[tuple[Property, ...]] = ()  #: checked after it

    def __init_subclass__(cls) -> None:
        cls.name = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__.strip("_")).lower()

    @abstractmethod
    def rewrite(self, graph_module: GraphModule) -> PassResult: ...


def run_passes(
    graph_module: GraphModule,
    passes: Sequence[Pass],
    after: Callable[[Pass, PassResult], None] | None = None,
    *,
    consume: bool = False,
) -> PassResult:
    """Runs the passes in order on a copy; the graph module given stays as it is.

    after: is called behind every pass with the pass and its result.
    consume: makes no copy: the graph module given is used up, which spares its memory twice.
    Raises RequirementError, RewriteError or PromiseError, with the pass's name in front.
    """
    current = graph_module if consume else copy.deepcopy(graph_module)
    changed = False
    notes: list[str] = []
    for each in passes:
        result = _run_pass(current, each)
        current = result.graph_module
        changed = changed or result.changed
        notes.extend(f"{each.name}: {note}" for note in result.notes)
        if after is not None:
            after(each, result)
    return PassResult(current, changed, tuple(notes))


def sharing_weights(graph_module: GraphModule) -> GraphModule:
    """A copy of the graph and its modules with the very tensors of the one given: to be rewritten, looked at and
    dropped. Rewrites put other tensors in the place of those that they change."""
    tensors = itertools.chain(graph_module.parameters(), graph_module.buffers())
    return copy.deepcopy(graph_module, {id(tensor): tensor for tensor in tensors})


def _run_pass(graph_module: GraphModule, each: Pass) -> PassResult:
    _check(graph_module, each.requires, each, RequirementError)
    before = _state(graph_module)
    try:
        result = each.rewrite(graph_module)
    except PassError as error:
        raise RewriteError(error.reason, each.name) from error
    except Exception as error:
        raise RewriteError(f"the rewrite failed with {type(error).__name__}: {error}", each.name) from error
    if each.in_place and result.graph_module is not graph_module:
        raise PromiseError("it works in place and returned another graph module than it was given", each.name)
    if not (each.in_place and result.changed) and _state(graph_module) != before:
        promise = "reported no change" if each.in_place else "works on a copy"
        raise PromiseError(f"it {promise} and changed the graph module that it was given", each.name)
    result.graph_module.delete_all_unused_submodules()
    try:
        result.graph_module.graph.lint()
        result.graph_module.recompile()
    except Exception as error:
        raise PromiseError(f"its graph is malformed: {error}", each.name) from error
    _check(result.graph_module, each.ensures, each, PromiseError)
    return result


def _check(graph_module: GraphModule, properties: Sequence[Property], each: Pass, failure: type[PassError]) -> None:
    for holds in properties:
        try:
            holds(graph_module)
        except PassError as error:
            raise failure(error.reason, each.name) from error


def _state(graph_module: GraphModule) -> object:
    """Equal before and after what changed nothing: nodes, modules with their settings, and tensors.

    Instead of values, a tensor's version is compared, which torch counts up with every write in place.
    """
    modules = [(name, _Identity(module), module.extra_repr()) for name, module in graph_module.named_modules()]
    named = itertools.chain(graph_module.named_parameters(), graph_module.named_buffers())
    return str(graph_module.graph), modules, [(name, _Identity(tensor), tensor._version) for name, tensor in named]


class _Identity(weakref.ref[Any]):
    """Equal to another of the same living object. It keeps none alive: weights that a pass replaces are freed."""

    __slots__ = ()
    __hash__ = weakref.ref.__hash__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identity) and self() is other()

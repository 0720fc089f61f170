"""A trace takes a second even of a small model, and tests trace the same few again and again: here each is made once.

The graph depends on a module's code, settings, buffers and the shapes of its parameters, but not on their values, which
torch.export never sees. A trace is kept by all of these; whoever asks again gets a copy with the parameters given.
"""

from __future__ import annotations

import copy
import hashlib
import io
import pickle
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from vitfx.graph.trace import aten_graph

_GRAPHS: dict[bytes, tuple[GraphModule, list[Any]]] = {}


def aten_graph_once(module: nn.Module, example: Tensor) -> GraphModule:
    """`aten_graph`, kept; made anew of what can't be pickled, such as a class within a test."""
    key = _key(module, example)
    own = dict(module.named_parameters(remove_duplicate=False))
    if key is None or key not in _GRAPHS:
        traced = aten_graph(module, example)
        if key is None or any(own.get(name) is not kept for name, kept in traced.named_parameters()):
            return traced
        # The key holds addresses of code, which nothing else can have as long as the code is kept.
        _GRAPHS[key] = copy.deepcopy(traced, {id(kept): _no_values() for kept in traced.parameters()}), _code(module)
    kept = _GRAPHS[key][0]
    return copy.deepcopy(kept, {id(parameter): own[name] for name, parameter in kept.named_parameters()})


def _no_values() -> nn.Parameter:
    return nn.Parameter(torch.empty(0), requires_grad=False)


class _Pickler(pickle.Pickler):
    """Writes of each tensor what a trace can depend on: of a parameter no values."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self._order: dict[int, int] = {}

    def persistent_id(self, value: object) -> object:
        if not isinstance(value, Tensor):
            return None
        place = self._order.setdefault(id(value), len(self._order))
        values = None if isinstance(value, nn.Parameter) else value.tolist()
        return place, value.shape, value.stride(), str(value.dtype), str(value.device), value.requires_grad, values


def _key(module: nn.Module, example: Tensor) -> bytes | None:
    file = io.BytesIO()
    try:
        _Pickler(file).dump(module)
    except Exception:  # A module may raise anything where it can't be pickled.
        return None
    code = [id(part) for part in _code(module)]
    told = f"{code}{example.shape}{example.stride()}{example.dtype}{example.device}"
    return hashlib.sha256(file.getvalue() + told.encode()).digest()


def _code(module: nn.Module) -> list[Any]:
    return [type(part).forward for part in module.modules()]

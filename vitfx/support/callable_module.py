"""Modules that can be called: `vitfx.prune` is a command's module and, for Python, the function of that name in it."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from types import ModuleType


def make_callable(function: Callable[..., object]) -> None:
    """Makes the module of `function` call it; to be called at the end of that module."""
    sys.modules[function.__module__].__class__ = type(
        "CallableModule",
        (ModuleType,),
        {
            "__call__": staticmethod(function),
            "__signature__": inspect.signature(function),
        },
    )

"""Modules in eval mode for as long as that is needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Every submodule is in eval mode while the block runs, and then in its own mode again: parts may be frozen."""
    # Flags one by one: modules from torch.export refuse eval().
    modes = [(part, part.training) for part in module.modules()]
    for part, _ in modes:
        part.training = False
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training

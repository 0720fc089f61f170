"""vitfx: a torch.fx graph-rewriting compiler that makes trained Vision Transformers smaller and faster.

import vitfx
pruned = vitfx.prune(model, images, tau=0.01)      # any nn.Module; or, in a shell, python -m vitfx.prune --help
"""

from __future__ import annotations

import importlib
from typing import Any

from vitfx import version

__version__ = version.VERSION
__all__ = ["__version__", "prune"]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import: `python -m vitfx --help` and `vitfx.__version__` do without it.
    if name == "prune":
        return importlib.import_module("vitfx.prune")
    raise AttributeError(f"module 'vitfx' has no attribute {name!r}")

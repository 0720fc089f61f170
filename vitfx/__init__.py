"""vitfx: a torch.fx graph-rewriting compiler that makes trained Vision Transformers smaller and faster.

import vitfx
pruned = vitfx.prune(model, images, tau=0.01)      # any nn.Module; or, in a shell, python -m vitfx.prune --help
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from vitfx import version

if TYPE_CHECKING:
    # A type checker sees functions where Python has the commands' modules, which can be called like them.
    from vitfx.prune import prune as prune

__version__ = version.VERSION
__all__ = ["__version__", "prune"]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        # torch takes seconds to import: `python -m vitfx --help` and `vitfx.__version__` do without it.
        if name in __all__:
            return importlib.import_module(f"vitfx.{name}")
        raise AttributeError(f"module 'vitfx' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})

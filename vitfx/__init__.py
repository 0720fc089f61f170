"""vitfx: a torch.fx graph-rewriting compiler that makes trained Vision Transformers smaller and faster.

import vitfx
pruned = vitfx.prune(model, images, labels, target_speedup=1.5)    # any nn.Module; in a shell, vitfx prune --help
pruned.save("small/")
circuit = vitfx.discover(model, images, labels, method="acdc", granularity="qkv", tau=1e-3)
faster = vitfx.optimize(model, images)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from vitfx import version

if TYPE_CHECKING:
    # A type checker sees functions where Python has the commands' modules, which can be called like them.
    from vitfx.discover import discover as discover
    from vitfx.optimize import optimize as optimize
    from vitfx.prune import prune as prune
    from vitfx.support import errors as errors

__version__ = version.VERSION
__all__ = ["__version__", "discover", "errors", "optimize", "prune"]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> object:
        # torch takes seconds to import: `python -m vitfx --help` and `vitfx.__version__` do without it.
        if name == "errors":
            return importlib.import_module("vitfx.support.errors")
        if name in __all__:
            return importlib.import_module(f"vitfx.{name}")
        raise AttributeError(f"module 'vitfx' has no attribute {name!r}")

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})

"""Model files and architectures, in and out.

Imports graph, images and support. Checkpoints name `vitfx.models:ViT`, which is imported on demand: an artifact loads
without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vitfx.models.vit import ViT

__all__ = ["ViT"]


def __getattr__(name: str) -> Any:
    if name == "ViT":
        from vitfx.models.vit import ViT

        return ViT
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

"""Builds the model that a checkpoint names, and nothing else that it might name."""

from __future__ import annotations

import importlib
from typing import Any

from torch import nn

from vitfx.support.errors import UserError

# A checkpoint may come from anyone, so it can only name model classes of these packages, and these functions.
_MODEL_PACKAGES = {
    "torchvision": "torchvision.models",
    "timm": "timm.models",
    "transformers": "transformers.models",
    "vitfx": "vitfx.models",
}
_MODEL_FUNCTIONS = ("timm:create_model", "torchvision.models:get_model")
# Arguments with which those functions read other files or the network.
_LOADING_ARGUMENTS = (
    "pretrained", "weights", "weights_backbone", "checkpoint_path", "cache_dir",
    "pretrained_cfg", "pretrained_cfg_overlay",
)  # fmt: skip


def build_from_factory(factory: str, kwargs: dict[str, Any]) -> nn.Module:
    """The module that `factory` ("module:callable") makes of `kwargs`, with random weights.

    For a class of transformers, `kwargs` are its configuration's.

    Raises UserError where the factory is not one that a checkpoint may name, is not installed, or refuses `kwargs`.
    """
    made_by = _find(factory)
    if loading := [name for name in _LOADING_ARGUMENTS if kwargs.get(name)]:
        raise UserError(f"the checkpoint's {loading[0]} would read another file: leave {loading[0]} out of its kwargs")
    if isinstance(name := kwargs.get("model_name", kwargs.get("name")), str) and ":" in name:
        raise UserError(f"the checkpoint's model {name!r} would be read from elsewhere: give a name without a colon")
    try:
        if config_class := getattr(made_by, "config_class", None):
            return made_by(config_class(**kwargs))
        return made_by(**kwargs)
    except UserError:
        raise
    except Exception as error:  # Each library refuses bad arguments with exceptions of its own.
        raise UserError(
            f"{factory} does not take the checkpoint's kwargs ({_first_line(error)}): "
            "check that they are those the weights were trained with"
        ) from error


def import_extra(package: str, extra: str) -> Any:
    """The module of an optional package; UserError with what to install where it is missing."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise UserError(f"this model needs {package}, which is not installed: pip install 'vitfx[{extra}]'") from error


def _find(factory: str) -> Any:
    module_name, _, name = str(factory).partition(":")
    top = module_name.partition(".")[0]
    if top not in _MODEL_PACKAGES:
        raise UserError(
            f"the checkpoint's factory {factory!r} is not of {', '.join(_MODEL_PACKAGES)}: only these are run; "
            "export the model with torch.export.save instead"
        )
    if top in ("timm", "transformers"):
        import_extra(top, "hf" if top == "transformers" else "timm")
    try:
        found = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(
            f"the checkpoint's factory {factory!r} does not exist: give it as module:callable, "
            "such as torchvision.models:VisionTransformer"
        ) from error
    is_model = isinstance(found, type) and issubclass(found, nn.Module)
    if factory in _MODEL_FUNCTIONS or (is_model and found.__module__.startswith(_MODEL_PACKAGES[top])):
        return found
    raise UserError(
        f"the checkpoint's factory {factory!r} is no model class of {_MODEL_PACKAGES[top]}: "
        f"name a model class, or one of {', '.join(_MODEL_FUNCTIONS)}"
    )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__

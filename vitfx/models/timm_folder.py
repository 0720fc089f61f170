"""A model's folder as timm's Hub pages have it: config.json with an architecture and a pretrained_cfg, and weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from vitfx.images.preprocess import Preprocess
from vitfx.models.architectures import timm_preprocess
from vitfx.models.factory import TIMM, Arguments, check_arguments, import_extra, is_classifier, timm_arguments
from vitfx.models.huggingface import as_object, read_object
from vitfx.models.model_file import folder_weights, read_model_file, refuse_adapter_folder
from vitfx.models.state_dicts import choose_weights
from vitfx.models.weights import load_weights
from vitfx.support.errors import UserError, in_a_line

#: What of a pretrained_cfg says how images are prepared; the rest names places and files, which are not for us.
_IMAGES: Arguments = {int: "num_classes", str: "interpolation crop_mode", float: "crop_pct"}
_VECTORS = {"input_size": 3, "mean": None, "std": None}


def is_timm_folder(folder: Path) -> bool:
    """Whether its config.json names one of timm's architectures, as timm and transformers' TimmWrapper write it."""
    path = folder / "config.json"
    if not path.is_file():
        return False
    record = read_object(path)
    model_type = record.get("model_type")
    return model_type == "timm_wrapper" or (model_type is None and "architecture" in record)


def load_timm_folder(
    folder: Path, contents: Any, source: str, which: str | None = None
) -> tuple[nn.Module, Preprocess, tuple[str, ...] | None, str | None]:
    """The classifier, its preprocessing, its class names and which weights it has.

    contents: a file's, with a state_dict to load instead of the folder's own, or None
    which: "ema" or "raw", where the file has both

    Raises UserError.
    """
    refuse_adapter_folder(folder)
    path = folder / "config.json"
    record = read_object(path)
    name, arguments = record.get("architecture"), as_object(record.get("model_args") or {}, path)
    if not is_classifier("timm", name):
        raise UserError(f"{path} names the architecture {in_a_line(name)!r}, which timm does not have")
    check_arguments(arguments, TIMM, f"the model argument in {path},")
    settings = _settings(record, path)
    classes = settings.pop("num_classes", None)
    arguments = ({} if classes is None else {"num_classes": classes}) | arguments
    try:
        module: nn.Module = import_extra("timm", "timm").create_model(
            name, pretrained=False, pretrained_cfg_overlay=settings, **timm_arguments(arguments)
        )
        preprocess = timm_preprocess(module)
    except UserError:
        raise
    except Exception as error:  # timm refuses with many kinds of exception.
        raise UserError(f"{path} names a model that timm can't make ({in_a_line(error)}): correct it") from error
    if contents is None:
        contents = read_model_file(folder_weights(folder), trust_pickle=False)
    chosen = choose_weights(contents, module.state_dict().keys(), f"timm:{name}", source, which)
    load_weights(module, chosen.weights, f"timm:{name}", chosen.source)
    return module.float(), preprocess, _class_names(record, path), chosen.note


def _settings(record: dict[str, Any], path: Path) -> dict[str, Any]:
    """The number of classes and how images are prepared, from pretrained_cfg or, in old folders, from beside it."""
    config = as_object(record.get("pretrained_cfg") or record, path)
    settings = {name: config[name] for names in _IMAGES.values() for name in names.split() if name in config}
    if "num_classes" in record:
        settings["num_classes"] = record["num_classes"]
    elif "num_labels" in record:
        settings["num_classes"] = record["num_labels"]
    check_arguments(settings, _IMAGES, f"the setting in {path},")
    for name, length in _VECTORS.items():
        if (value := config.get(name)) is None:
            continue
        numbers = isinstance(value, list) and all(type(part) in (int, float) for part in value)
        if not numbers or len(value) != (length or len(value)) or not value:
            raise UserError(f"{path} gives {name} as {in_a_line(value)!r}: give a list of numbers")
        settings[name] = tuple(value)
    return settings


def _class_names(record: dict[str, Any], path: Path) -> tuple[str, ...] | None:
    config = as_object(record.get("pretrained_cfg") or {}, path)
    names = record.get("label_names") or config.get("label_names") or record.get("labels")
    if names is None:
        return None
    if not isinstance(names, list) or not all(type(name) in (str, int) for name in names):
        raise UserError(f"{path} gives label_names as {in_a_line(names)!r}: give a list of names")
    return tuple(map(str, names))

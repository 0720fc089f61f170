"""Image classifiers and backbones from a local Hugging Face folder."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from vitfx.graph.plain_module import other_inputs
from vitfx.images.preprocess import Preprocess
from vitfx.models.factory import import_extra, to_size
from vitfx.models.hf_backbone import backbone_class, load_backbone
from vitfx.models.model_file import read_model_file, refuse_adapter_folder, weights_file
from vitfx.models.processors import processor_recipe
from vitfx.models.state_dicts import choose_weights
from vitfx.models.weights import check_finite, load_weights
from vitfx.support.errors import UserError, in_a_line
from vitfx.support.reading import check_depth, read_text

_PROCESSOR = "preprocessor_config.json"
_AGAIN = "save the model and its processor again"
# Keys of a configuration that name code or files elsewhere; vitfx needs none of them.
_ELSEWHERE = ("auto_map", "attn_implementation", "_attn_implementation", "_attn_implementation_internal")


def load_folder(
    folder: Path, contents: Any, source: str, which: str | None = None
) -> tuple[nn.Module, Preprocess | None, tuple[str, ...] | None, str | None]:
    """The model, its preprocessing, its class names and which weights it has, from `folder`.

    folder: with config.json and weights
    contents: a file's, with a state_dict to load instead of the folder's own, or None
    which: "ema" or "raw", where the file has both

    Raises UserError where the folder holds no image classifier and no backbone, or one whose weights are missing or do
    not fit.
    """
    transformers = import_extra("transformers", "hf")
    record = _read_config(folder, transformers)
    backbone = backbone_class(record, transformers)
    kind = "an image classifier" if backbone is None else f"a {backbone.__name__}"
    try:
        config = transformers.CONFIG_MAPPING[record["model_type"]].from_dict(record)
        classes = _class_names(config) if backbone is None else None
        classifier = backbone or transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING[type(config)]
        if isinstance(classifier, type) and (others := other_inputs(classifier, "self")):
            raise UserError(
                f"{folder} is a {classifier.__name__}, which takes more than images ({', '.join(others)}): "
                "give a model whose forward() takes one tensor (B, C, H, W)"
            )
        with _quiet(transformers):
            preprocess = _preprocess(folder, config, transformers)
            module, info = _made(folder, config, backbone, transformers, fresh=contents is not None)
        module = module.float()
    except UserError:
        raise
    except Exception as error:  # transformers refuses with many kinds of exception.
        raise UserError(
            f"{folder} cannot be loaded as {kind} ({in_a_line(error)}): check its config.json and weights"
        ) from error
    absent = sorted(info.get("missing_keys", ()))
    if absent and (file := weights_file(folder)):
        # transformers leaves out weights whose names a wrapper has changed, such as torch.compile's.
        own = choose_weights(
            read_model_file(file, trust_pickle=False), module.state_dict(), f"hf:{folder}", str(file), which
        )
        if own.weights.keys() == module.state_dict().keys():
            load_weights(module, own.weights, f"hf:{folder}", own.source)
            return module, preprocess, classes, own.note
    if absent:
        raise UserError(
            f"{folder} has no weights for {len(absent)} tensors (first: {absent[0]}): "
            f"give {'a whole folder' if backbone else _what_instead(record, classifier)}"
        )
    if contents is None:
        check_finite(module.state_dict(), source)
        return module, preprocess, classes, None
    chosen = choose_weights(contents, module.state_dict().keys(), f"hf:{folder}", source, which)
    load_weights(module, chosen.weights, f"hf:{folder}", chosen.source)
    return module, preprocess, classes, chosen.note


def _what_instead(record: Mapping[str, Any], classifier: Any) -> str:
    """Of a folder without the weights of an image classifier."""
    names = record.get("architectures")
    name, own = names[0] if isinstance(names, list) and names else None, getattr(classifier, "__name__", None)
    if not isinstance(name, str) or name == own:
        return "a model fine-tuned for image classification"
    return (
        f"a model fine-tuned for image classification, as this one was saved from a {in_a_line(name)}, save its part "
        "for images alone (a VisionModel or a Backbone), or export it with torch.export.save"
    )


def _made(
    folder: Path, config: Any, backbone: Any, transformers: Any, *, fresh: bool
) -> tuple[nn.Module, dict[str, Any]]:
    """The model and transformers' report of its weights. fresh: without the folder's own."""
    factory = transformers.AutoModelForImageClassification
    if fresh:
        return factory.from_config(config, trust_remote_code=False) if backbone is None else backbone(config), {}
    # What a folder holds stays data: transformers looks for nothing elsewhere, and asks nobody whether to run code.
    safely = {"config": config, "local_files_only": True, "weights_only": True, "output_loading_info": True}
    if backbone is not None:
        return load_backbone(backbone, folder, safely)
    module, info = factory.from_pretrained(folder, trust_remote_code=False, **safely)
    return module, info


def _read_config(folder: Path, transformers: Any) -> dict[str, Any]:
    """config.json, of a model whose code is transformers' own, without what would fetch or run anything else."""
    path = folder / "config.json"
    refuse_adapter_folder(folder)
    if not path.is_file():
        raise UserError(f"{folder} has no config.json: give a folder that save_pretrained wrote")
    record: dict[str, Any] = _without(read_object(path), _ELSEWHERE)
    if record.get("quantization_config") is not None:
        raise UserError(f"{path} is of a quantized model: save the model in float32")
    model_type = record.get("model_type")
    configs, classifiers = transformers.CONFIG_MAPPING, transformers.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING
    # Others, such as depth estimators, load their backbone from elsewhere when they are only configured.
    classifies = isinstance(model_type, str) and model_type in configs and configs[model_type] in classifiers
    if not classifies and backbone_class(record, transformers) is None:
        raise UserError(
            f"{path} is of the model_type {in_a_line(model_type)!r}, of which transformers {transformers.__version__} "
            "has no image classifier (code in the folder is never run): export the model with torch.export.save instead"
        )
    return record


def _without(value: Any, keys: tuple[str, ...]) -> Any:
    if isinstance(value, dict):
        return {name: _without(part, keys) for name, part in value.items() if name not in keys}
    return [_without(part, keys) for part in value] if isinstance(value, list) else value


def read_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file, without numbers too large for a model's; raises UserError."""
    text = read_text(path, _AGAIN)
    try:
        value = json.loads(text, parse_int=to_size)
        check_depth(value)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON ({in_a_line(error)}): {_AGAIN}") from error
    return as_object(value, path)


def as_object(value: Any, path: Path) -> dict[str, Any]:
    """`value`, which the file at `path` holds; raises UserError where it is no JSON object."""
    if not isinstance(value, dict):
        raise UserError(f"{path} holds {in_a_line(value)!r}, not an object: {_AGAIN}")
    return value


@contextmanager
def _quiet(transformers: Any) -> Iterator[None]:
    """Without the library's progress bar and load report: a UserError says what the report would."""
    log = transformers.utils.logging
    verbosity, bar = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        yield
    finally:
        log.set_verbosity(verbosity)
        if bar:
            log.enable_progress_bar()


def default_recipe(config: Any) -> Preprocess | None:
    """What transformers does for a configuration's type of model, where nothing else is known of one."""
    transformers = import_extra("transformers", "hf")
    with _quiet(transformers):
        return processor_recipe(None, _PROCESSOR, config, transformers)


def _preprocess(folder: Path, config: Any, transformers: Any) -> Preprocess | None:
    """As transformers reads a folder: a processor_config.json with an image processor goes first."""
    record, name = None, _PROCESSOR
    if (path := folder / name).is_file():
        record = read_object(path)
    if (path := folder / "processor_config.json").is_file() and (inner := read_object(path).get("image_processor")):
        record, name = as_object(inner, path), path.name
    return processor_recipe(record, name, config, transformers)


def names_in_config(module: nn.Module) -> tuple[str, ...] | None:
    """The names that a Hugging Face model in memory has for its classes; None for any other module."""
    configs = (getattr(part, "config", None) for part in module.modules())
    config = next((config for config in configs if isinstance(getattr(config, "id2label", None), dict)), None)
    return None if config is None else _class_names(config)


def _class_names(config: Any) -> tuple[str, ...] | None:
    names = tuple(str(config.id2label[index]) for index in sorted(config.id2label))
    # transformers invents these where the model was saved without names.
    invented = all(name == f"LABEL_{position}" for position, name in enumerate(names))
    return None if invented else names

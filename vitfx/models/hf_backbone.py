"""transformers' models of images without a head: backbones and towers, which answer with features."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

_ENDINGS = ("Model", "ModelWithProjection", "Backbone")


def backbone_class(record: Mapping[str, Any], transformers: Any) -> Any:
    """The class that a config.json says its folder was saved from, where that is transformers' own, takes images and
    has no head; else None. record: the file's contents."""
    names, model_type = record.get("architectures"), record.get("model_type")
    name = names[0] if isinstance(names, list) and names else None
    if not isinstance(name, str) or not name.endswith(_ENDINGS) or not isinstance(model_type, str):
        return None
    made: Any = getattr(transformers, name, None) if name.isidentifier() else None
    if not _is_model(made, transformers):
        return None
    own = model_type in transformers.CONFIG_MAPPING and made.config_class is transformers.CONFIG_MAPPING[model_type]
    return made if own and made.main_input_name == "pixel_values" else None


def _is_model(made: Any, transformers: Any) -> bool:
    return isinstance(made, type) and issubclass(made, transformers.PreTrainedModel)


def load_backbone(made: Any, folder: Path, settings: Mapping[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """The model and transformers' report of its weights. A pooler that the folder has no weights for is left out."""
    module, info = made.from_pretrained(folder, **settings)
    absent = list(info.get("missing_keys", ()))
    if absent and all(name.startswith("pooler.") for name in absent):
        module, info = made.from_pretrained(folder, add_pooling_layer=False, **settings)
    return module, info

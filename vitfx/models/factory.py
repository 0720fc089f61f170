"""Builds the model that a checkpoint names.

A checkpoint may come from anyone, so it can name only the factories listed here, with only the arguments listed for
each: sizes, rates and names of parts. No argument reads a file, the network or code.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping
from typing import Any

import torchvision
from torch import nn

from vitfx.support.errors import UserError, in_a_line

Arguments = Mapping[type, str]
"""The names of arguments by their type. An `int` does for a `float`, and for a `list`, which is of numbers or names;
arguments of `NoneType` can only be switched off. None does for every argument."""

_VITFX: Arguments = {
    list: "image_size",
    int: "patch_size channels classes width depth heads mlp",
    float: "dropout drop_path attention_dropout",
}
_TORCHVISION: Arguments = {
    int: "image_size patch_size num_layers num_heads hidden_dim mlp_dim num_classes representation_size",
    float: "dropout attention_dropout stochastic_depth_prob",
}
TIMM: Arguments = {
    int: "in_chans num_classes embed_dim depth num_heads reg_tokens num_reg_tokens swiglu_align_to",
    list: "img_size patch_size ref_feat_shape",
    float: "mlp_ratio init_values drop_rate pos_drop_rate patch_drop_rate proj_drop_rate attn_drop_rate drop_path_rate "
    "head_init_scale rope_grid_offset rope_temperature",
    bool: "qkv_bias qkv_fused qk_norm scale_attn_norm scale_mlp_norm proj_bias class_token no_embed_class pre_norm "
    "final_norm fc_norm pool_include_prefix dynamic_img_size dynamic_img_pad fix_init swiglu_mlp scale_mlp "
    "scale_attn_inner use_abs_pos_emb use_rot_pos_emb use_rel_pos_bias use_shared_rel_pos_bias use_post_norm "
    "use_pre_transformer_norm use_post_transformer_norm use_fc_norm rope_rotate_half",
    str: "global_pool pos_embed weight_init norm_layer act_layer embed_norm_layer attn_type rope_type "
    "rope_grid_indexing",
    type(None): "pretrained pretrained_cfg pretrained_cfg_overlay checkpoint_path cache_dir",
}
_TRANSFORMERS: Arguments = {
    int: "hidden_size num_hidden_layers num_attention_heads intermediate_size num_channels encoder_stride "
    "pooler_output_size num_labels num_register_tokens chunk_size_feed_forward",
    list: "image_size patch_size architectures stage_names out_features out_indices",
    float: "hidden_dropout_prob attention_probs_dropout_prob attention_dropout initializer_range layer_norm_eps "
    "mlp_ratio layerscale_value layer_scale_init_value drop_path_rate",
    bool: "qkv_bias use_swiglu_ffn apply_layernorm reshape_hidden_states use_mask_token use_mean_pooling "
    "use_absolute_position_embeddings use_relative_position_bias use_shared_relative_position_bias "
    "output_hidden_states output_attentions return_dict is_encoder_decoder",
    str: "hidden_act pooler_act problem_type model_type transformers_version dtype torch_dtype _name_or_path",
    dict: "id2label label2id",
}
#: What `--arch` may give, by library.
ARGUMENTS: Mapping[str, Arguments] = {"timm": TIMM, "torchvision": _TORCHVISION}
_FACTORIES: Mapping[str, Arguments] = {
    r"vitfx\.models(\.vit)?:ViT": _VITFX,
    r"torchvision\.models(\.vision_transformer)?:VisionTransformer": _TORCHVISION,
    r"torchvision\.models:get_model": {**_TORCHVISION, str: "name", type(None): "weights weights_backbone"},
    r"timm\.models(\.[a-z]\w*)?:[A-Z]\w+": TIMM,
    r"timm:create_model": {**TIMM, str: f"model_name {TIMM[str]}"},
    r"transformers(\.models\.[a-z]\w*(\.modeling_\w+)?)?:\w+ForImageClassification\w*": _TRANSFORMERS,
}
_EXAMPLES = "torchvision.models:VisionTransformer, timm:create_model or transformers:ViTForImageClassification"
# No number of layers, classes or pixels is larger; with more, a library would build for hours.
_LARGEST = 10**6
_EXTRAS = {"timm": "timm", "transformers": "hf"}


def build_from_factory(factory: str, kwargs: Mapping[str, Any]) -> nn.Module:
    """The module that `factory` ("module:callable") makes of `kwargs`, with random weights.

    For a class of transformers, `kwargs` are its configuration's.

    Raises UserError where the factory or an argument is not one that a checkpoint may name, where the library is not
    installed, and where it refuses `kwargs`.
    """
    arguments = next((known for names, known in _FACTORIES.items() if re.fullmatch(names, factory, re.ASCII)), None)
    if arguments is None:
        raise UserError(
            f"the checkpoint's factory {factory!r} is not one that a checkpoint may name, such as {_EXAMPLES}: "
            "export the model with torch.export.save instead"
        )
    check_arguments(kwargs, arguments, f"the checkpoint's argument of {factory},")
    library = factory.partition(":")[0].partition(".")[0]
    if factory in ("timm:create_model", "torchvision.models:get_model"):
        name = kwargs.get("model_name" if library == "timm" else "name")
        if not is_classifier(library, name):
            raise UserError(f"the checkpoint's model {name!r} is no image classifier of {library}: correct its name")
    make = _find(factory, library)
    try:
        config_class = getattr(make, "config_class", None)
        if library == "timm":
            kwargs = timm_arguments(kwargs)
        module: nn.Module = make(**kwargs) if config_class is None else make(config_class(**kwargs))
        return module
    except UserError:
        raise
    except Exception as error:  # Each library refuses bad arguments with exceptions of its own.
        raise UserError(
            f"{factory} does not take the checkpoint's kwargs ({in_a_line(error)}): "
            "give those that the weights were trained with"
        ) from error


def check_arguments(given: Mapping[str, Any], arguments: Arguments, owner: str) -> None:
    """Raises UserError for the first argument that is not in the list or not of its type.

    owner: what the sentence begins with.
    """
    kinds = {name: kind for kind, names in arguments.items() for name in names.split()}
    for name, value in given.items():
        if name not in kinds:
            raise UserError(
                f"{owner} {name!r}, is none that a file may give: leave it out, or export the model instead"
            )
        if not _is_of(value, kinds[name]):
            advice = "leave it out" if kinds[name] is type(None) else f"give a {kinds[name].__name__} that fits"
            raise UserError(f"{owner} {name!r}, is {in_a_line(value)!r}: {advice}")


def is_classifier(library: str, name: object) -> bool:
    """Whether timm or torchvision has an image classifier of this name, which it builds without reading anything.

    torchvision's detection and segmentation models download a backbone; timm's "hf-hub:" names, a configuration.
    """
    if not isinstance(name, str):
        return False
    if library == "timm":
        return ":" not in name and bool(import_extra("timm", "timm").is_model(name))
    return name in torchvision.models.list_models(module=torchvision.models)


def import_extra(package: str, extra: str) -> Any:
    """The module of an optional package; UserError with what to install where it is missing."""
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        raise UserError(f"this model needs {package}, which is not installed: pip install 'vitfx[{extra}]'") from error


def _find(factory: str, library: str) -> Any:
    if library in _EXTRAS:
        import_extra(library, _EXTRAS[library])
    module, _, name = factory.partition(":")
    try:
        make = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"the checkpoint's factory {factory!r} does not exist: correct its name") from error
    if name[0].isupper() and not (isinstance(make, type) and issubclass(make, nn.Module)):
        raise UserError(f"the checkpoint's factory {factory!r} is no model class: correct its name")
    return make


def timm_arguments(kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
    """With timm's norm in place of its name, which only some of timm's classes look up themselves. Raises ValueError
    for a name that timm does not have."""
    if not (name := kwargs.get("norm_layer")):
        return kwargs
    try:
        return {**kwargs, "norm_layer": import_extra("timm", "timm").layers.get_norm_layer(name)}
    except KeyError as error:
        raise ValueError(f"timm has no norm named {name!r}") from error


def to_size(digits: str) -> int:
    """A whole number out of JSON; raises ValueError where it is too large for a model's."""
    if len(digits) > 9 or abs(number := int(digits)) > _LARGEST:
        raise ValueError(f"{digits[:20]} is larger than {_LARGEST}")
    return number


def _is_of(value: object, kind: type) -> bool:
    if value is None:
        return True
    if isinstance(value, int) and abs(value) > _LARGEST:
        return False
    if kind is type(None):
        return value is False
    if kind is float:
        return type(value) in (int, float)
    if kind is list and isinstance(value, list | tuple):
        return all(type(part) in (int, str) for part in value)
    if kind is list:
        return type(value) is int
    if kind is dict:
        return isinstance(value, dict) and all(type(part) in (int, str) for part in (*value, *value.values()))
    return type(value) is kind

"""A model's twin: Hugging Face's ViT with the same weights, which circuit tools of others take apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from vitfx.models.factory import import_extra
from vitfx.models.vit import ViT
from vitfx.support.errors import UserError

_TOLERANCE = 1e-9
_PARTS = ("q", "k", "v")


def make_twin(module: nn.Module, pixels: Tensor) -> nn.Module:
    """A ViTForImageClassification in float64 and eval mode that gives the module's logits.

    module: torchvision's VisionTransformer, vitfx's ViT, or a ViTForImageClassification, in float64, perhaps wrapped.
    pixels: some images (N, C, H, W), float64, by which this is checked.
    Raises UserError where the module is none of these, transformers is missing or too old, or the logits differ.
    """
    transformers = import_extra("transformers", "hf")
    classifier = transformers.ViTForImageClassification
    twin = None
    for part in module.modules():
        if isinstance(part, classifier):
            twin, tensors = classifier(part.config), part.state_dict()
        elif isinstance(part, VisionTransformer | ViT):
            read = _of_vitfx if isinstance(part, ViT) else _of_torchvision
            sizes, tensors = read(part)
            twin = classifier(transformers.ViTConfig(**sizes))
    if twin is None:
        raise UserError(f"{type(module).__name__} is no ViT of torchvision, Hugging Face or vitfx: give one")
    if not hasattr(twin.vit, "layers"):
        raise UserError("transformers is too old for this: pip install 'transformers>=5.9'")
    twin = twin.double().eval()
    twin.load_state_dict(tensors)
    with torch.no_grad():
        difference = float((twin(pixels).logits - module(pixels)).abs().max())
    if not difference < _TOLERANCE:
        raise UserError(f"the ViT of Hugging Face with the same weights gives other logits, by {difference:.1e}")
    made: nn.Module = twin
    return made


def _sizes(
    width: int, heads: int, hidden: int, depth: int, norm: Any, classes: int, **of_images: Any
) -> dict[str, Any]:
    """The arguments of Hugging Face's configuration."""
    return {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": heads,
        "intermediate_size": hidden,
        "layer_norm_eps": norm.eps,
        "num_labels": classes,
        **of_images,
    }


def _of_torchvision(source: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Sizes, and weights by Hugging Face's names."""
    blocks, classifier, norm = source.encoder.layers, source.heads[-1], source.encoder.ln
    sizes = _sizes(
        source.hidden_dim,
        blocks[0].num_heads,
        source.mlp_dim,
        len(blocks),
        norm,
        classifier.out_features,
        image_size=source.image_size,
        patch_size=source.patch_size,
        num_channels=source.conv_proj.in_channels,
    )
    embedding = {
        "cls_token": source.class_token,
        "position_embeddings": source.encoder.pos_embedding,
        "patch_embeddings.projection.weight": source.conv_proj.weight,
        "patch_embeddings.projection.bias": source.conv_proj.bias,
    }
    tensors = _under("vit.embeddings", embedding)
    for index, block in enumerate(blocks):
        attention, layer = block.self_attention, f"vit.layers.{index}"
        tensors |= _queries_keys_values(layer, attention.in_proj_weight, attention.in_proj_bias)
        tensors |= _under(f"{layer}.attention.o_proj", attention.out_proj.state_dict())
        tensors |= _block(layer, block.ln_1, block.ln_2, block.mlp[0], block.mlp[3])
    return sizes, tensors | _ending(norm, classifier)


def _of_vitfx(source: Any) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """As `_of_torchvision`."""
    blocks, linear = source.blocks, source.embed[1]
    patch = source.image_size[0] // source.grid[0]
    sizes = _sizes(
        source.head.in_features,
        blocks[0].attention.heads,
        blocks[0].mlp[0].out_features,
        len(blocks),
        source.norm,
        source.head.out_features,
        image_size=source.image_size,
        patch_size=patch,
        num_channels=linear.in_features // patch**2,
    )
    embedding = {
        "cls_token": source.class_token,
        "position_embeddings": source.positions,
        "patch_embeddings.projection.weight": linear.weight.unflatten(1, (patch, patch, -1)).permute(0, 3, 1, 2),
        "patch_embeddings.projection.bias": linear.bias,
    }
    tensors = _under("vit.embeddings", embedding)
    for index, block in enumerate(blocks):
        attention, layer = block.attention, f"vit.layers.{index}"
        tensors |= _queries_keys_values(layer, attention.qkv.weight, attention.qkv.bias)
        tensors |= _under(f"{layer}.attention.o_proj", attention.out[0].state_dict())
        tensors |= _block(layer, block.attention_norm, block.mlp_norm, block.mlp[0], block.mlp[3])
    return sizes, tensors | _ending(source.norm, source.head)


def _queries_keys_values(layer: str, weight: Tensor, bias: Tensor) -> dict[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for part, own_weight, own_bias in zip(_PARTS, weight.chunk(3), bias.chunk(3), strict=True):
        tensors |= _under(f"{layer}.attention.{part}_proj", {"weight": own_weight, "bias": own_bias})
    return tensors


def _block(layer: str, first: nn.Module, second: nn.Module, into: nn.Module, out: nn.Module) -> dict[str, Tensor]:
    parts = {"layernorm_before": first, "layernorm_after": second, "mlp.fc1": into, "mlp.fc2": out}
    tensors: dict[str, Tensor] = {}
    for name, part in parts.items():
        tensors |= _under(f"{layer}.{name}", part.state_dict())
    return tensors


def _ending(norm: nn.Module, classifier: nn.Module) -> dict[str, Tensor]:
    return _under("vit.layernorm", norm.state_dict()) | _under("classifier", classifier.state_dict())


def _under(name: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{name}.{own}": tensor for own, tensor in tensors.items()}

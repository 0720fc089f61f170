"""State dicts: unwrapped, checked, loaded into a module, and fingerprinted."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from vitfx.support.errors import UserError

# What training scripts put around or before the weights' names.
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")


def unwrap_state_dict(contents: Any, source: str) -> dict[str, torch.Tensor]:
    """The weights by name, out of {"state_dict": …}, {"model": …} and "module." prefixes.

    Raises UserError where `contents` is anything but tensors by name.
    """
    # A pickle may hold itself, so there is an end to wrappers.
    for _ in range(len(_WRAPPERS)):
        inner = (contents.get(wrapper) for wrapper in _WRAPPERS) if isinstance(contents, Mapping) else ()
        contents = next((part for part in inner if isinstance(part, Mapping)), contents)
    if not isinstance(contents, Mapping):
        raise UserError(f"{source} holds a {type(contents).__name__}, not weights by name: save the model's state_dict")
    if not contents:
        raise UserError(f"{source} holds no weights: save the model's state_dict")
    for name, value in contents.items():
        check_plain(name, value, source)
    weights = {str(name): value for name, value in contents.items()}
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def check_plain(name: object, value: object, source: str) -> None:
    """Raises UserError for a value that is no dense tensor of real numbers."""
    if not isinstance(value, torch.Tensor):
        fault = f"of type {type(value).__name__}"
    elif value.layout is not torch.strided or value.is_quantized or value.is_complex() or value.is_meta:
        fault = "sparse, quantized, complex or without data"
    else:
        return
    raise UserError(f"{name!r} in {source} is {fault}, not a plain tensor: save the model's state_dict")


def load_weights(module: nn.Module, weights: Mapping[str, torch.Tensor], factory: str, source: str) -> None:
    """Loads `weights` into `module`, strictly.

    Raises UserError naming the first key that is missing, unexpected or of another shape, with how many there are,
    for integers where the module has floats, and for NaN or infinite weights.
    """
    wanted = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in weights.items()}
    missing = [name for name in wanted if name not in given]
    unexpected = [name for name in given if name not in wanted]
    misshaped = [
        f"{name} is {given[name]}, not {wanted[name]}"
        for name in wanted
        if name in given and given[name] != wanted[name]
    ]
    misfits = {"missing": missing, "unexpected": unexpected, "of another shape": misshaped}
    if faults := [f"{len(names)} {fault} (first: {names[0]})" for fault, names in misfits.items() if names]:
        advice = "name the model that it was saved from"
        if factory.startswith("timm:"):
            advice += ", with the arguments that it was made with, as in timm:NAME,depth=4,embed_dim=96"
        # As many others that end alike are a classifier under another name.
        renamed = sorted(name.split(".")[-1] for name in missing) == sorted(name.split(".")[-1] for name in unexpected)
        last = missing and len(missing) <= 2 and missing == list(wanted)[-len(missing) :]
        if last and not misshaped and not renamed:
            advice = "its classifier is missing, so give weights that were fine-tuned for classification"
            features = not unexpected and factory.startswith("timm:")
            advice += ", or add num_classes=0 to `arch` for its features" if features else ""
        raise UserError(
            f"the state_dict of {source} does not fit {factory}, with {', '.join(faults)}{_shared_prefix(unexpected)}: "
            + advice
        )
    for name, value in module.state_dict().items():
        if value.is_floating_point() and not weights[name].is_floating_point():
            raise UserError(
                f"{name} in {source} is of {weights[name].dtype}, as quantized weights are without their scales: give "
                "the weights in floating point"
            )
    check_finite(weights, source)
    module.load_state_dict(weights, strict=True)


def _shared_prefix(names: list[str]) -> str:
    """Of names that the model does not have: what they all begin with, in whole parts."""
    shared: list[str] = []
    for parts in zip(*(name.split(".")[:-1] for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return f", all beginning with {'.'.join(shared)}." if shared and len(names) > 1 else ""


def check_finite(weights: Mapping[str, torch.Tensor], source: str) -> None:
    """Raises UserError naming the first tensor with NaN or infinite values."""
    for name, value in weights.items():
        if value.is_floating_point() and not (finite := value.isfinite()).all():
            raise UserError(
                f"{int((~finite).sum())} of the {value.numel()} weights in {name} of {source} are NaN or infinite: "
                "give a checkpoint from before training diverged"
            )


def fingerprint(weights: Mapping[str, torch.Tensor]) -> str:
    """sha256, as hex digits, over the sorted names with each tensor's dtype, shape and bytes."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()

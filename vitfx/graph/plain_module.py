"""A module as training code holds it -> a plain copy: no wrappers, weights that are parameters."""

from __future__ import annotations

import copy
import inspect
import re
from contextlib import suppress
from typing import cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.utils import parametrize, prune, remove_spectral_norm, remove_weight_norm
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from vitfx.support.errors import UserError, in_a_line

_WRAPPERS = {
    "OptimizedModule": "_orig_mod",
    "DataParallel": "module",
    "DistributedDataParallel": "module",
    "AveragedModel": "module",
}
"""torch's own classes around a model, and the attribute that holds it."""
_NEEDED = re.compile(r"^pixel_\w*mask$|shapes$|^input_ids$|^text")
_QUANTIZED = ("torch.ao.nn", "torch.ao.quantization", "torch.nn.quantized", "torchao", "bitsandbytes")
_INTEGERS = (torch.int8, torch.uint8)


def plain_module(module: nn.Module) -> nn.Module:
    """A copy in eval mode that computes the same and can be traced; the module stays as it is.

    Left out are torch.compile, DataParallel, DistributedDataParallel and AveragedModel around it or its parts. Weights
    that are computed from others (torch.nn.utils.prune, weight and spectral norm, parametrizations) become parameters
    with the values that they have. Raises UserError for quantized, sharded and TorchScript modules, for adapters that
    are not merged, and for what can't be copied.
    """
    module = _unwrapped(module)
    refuse_unusable(module)
    # torch copies no tensor that a computation left behind, and computed weights are such tensors.
    parts = [*module.__dict__.values()] + [value for part in module.modules() for value in part.__dict__.values()]
    kept = [value for value in parts if isinstance(value, Tensor) and not value.is_leaf]
    try:
        plain = copy.deepcopy(module, {id(value): value.detach().clone() for value in kept})
    except Exception as error:  # What a module holds may refuse to be copied in any way.
        raise UserError(
            f"the model can't be copied ({in_a_line(error)}): remove what it holds beside its parameters, such as "
            "stored activations"
        ) from error
    with suppress(NotImplementedError):
        plain.eval()
    for part in list(plain.modules()):
        for name, child in part.named_children():
            if (inner := _unwrapped(child)) is not child:
                setattr(part, name, inner)
    with torch.no_grad():
        for part in list(plain.modules()):
            _bake(part)
    return plain


def _unwrapped(module: nn.Module) -> nn.Module:
    while True:
        kind = type(module)
        held = _WRAPPERS.get(kind.__name__) if kind.__module__.startswith("torch.") else None
        if held is None:
            return module
        module = getattr(module, held)


def refuse_unusable(module: nn.Module) -> None:
    """Raises UserError for modules whose weights are not there as plain floating-point parameters."""
    if isinstance(module, torch.jit.ScriptModule):
        raise UserError("the model is TorchScript, which can't be traced: give the module that it was made from")
    if hasattr(module, "merge_and_unload"):
        raise UserError("the model has adapters beside its weights: merge them first, with model.merge_and_unload()")
    tensors = [*module.named_parameters(), *module.named_buffers()]
    if sharded := [name for name, weight in tensors if type(weight.data).__name__ in ("DTensor", "ShardedTensor")]:
        raise UserError(f"the model is sharded ({sharded[0]} is in parts): gather its weights in one module first")
    kinds = {name: type(part) for name, part in module.named_modules()}
    quantized = [name for name, kind in kinds.items() if kind.__module__.startswith(_QUANTIZED)]
    quantized += [
        name
        for name, weight in tensors
        if weight.is_quantized
        or type(weight.data).__module__.startswith("torchao")
        or (isinstance(weight, nn.Parameter) and weight.dtype in _INTEGERS)
    ]
    graphs = [part for part in module.modules() if isinstance(part, GraphModule)]
    quantized += [node.name for part in graphs for node in part.graph.nodes if "quantized" in str(node.target)]
    if quantized:
        raise UserError(
            f"the model is quantized (first: {quantized[0] or type(module).__name__}): give the float32 model that it "
            "was made from, and quantize after pruning"
        )


def other_inputs(module: nn.Module | type[nn.Module], *own: str) -> tuple[str, ...]:
    """The names of what forward() takes beside images: what it requires, and masks, shapes or text that it may need.

    own: names that are no inputs, such as a class's self
    """
    try:
        parameters = inspect.signature(module.forward).parameters
        _, *others = (parameters[name] for name in parameters if name not in own)
    except (TypeError, ValueError):
        return ()
    return tuple(
        other.name
        for other in others
        if other.kind in (other.POSITIONAL_ONLY, other.POSITIONAL_OR_KEYWORD)
        and (other.default is other.empty or _NEEDED.search(other.name))
    )


def _bake(module: nn.Module) -> None:
    """Makes parameters of weights that a hook or a parametrization computes."""
    if parametrize.is_parametrized(module):
        computed = {name: getattr(module, name) for name in cast("nn.ModuleDict", module.parametrizations)}
        # torch's remove_parametrizations would change the class, which the original has too.
        module.__class__ = parametrize.type_before_parametrizations(module)
        del module.parametrizations
        for name, value in computed.items():
            module.register_parameter(name, nn.Parameter(value.clone()))
    for hook in list(module._forward_pre_hooks.values()):
        match hook:
            case prune.BasePruningMethod():
                prune.remove(module, hook._tensor_name)
            case WeightNorm():
                remove_weight_norm(module, hook.name)
            case SpectralNorm():
                remove_spectral_norm(module, hook.name)

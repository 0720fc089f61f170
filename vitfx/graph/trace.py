"""nn.Module -> FX graph of ATen operators -> canonical graph, on torch.export."""

from __future__ import annotations

import copy
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import Dim
from torch.fx import GraphModule

from passes.base import Pass, PassError, run_passes
from passes.canonicalize import Canonicalize
from passes.drop_identities import DropIdentities
from passes.stream import is_canonical
from vitfx.support.errors import UserError

_GREATEST_BATCH = 4096
_VIEWS = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)


@dataclass(frozen=True)
class Traced:
    """A canonical graph and what the user should know of it (which sublayers are not prunable, and why)."""

    graph_module: GraphModule
    notes: tuple[str, ...]


def trace(module: nn.Module, example: Tensor) -> GraphModule:
    """The module's ATen graph with a dynamic batch, in eval mode; the module stays as it is.

    Operators that write in place, regions of another grad mode and einsum are written as plain operators.
    example: (B ≥ 2, C, H, W). Raises UserError where the module does not take such images, fixes its batch, or can't
    be traced.
    """
    module = at_rest(module)
    _try(module, example)
    batch = Dim("batch", min=1, max=_GREATEST_BATCH)
    with _quiet(), _no_fast_path(), torch.no_grad():
        try:
            program = torch.export.export(module, (example,), dynamic_shapes=({0: batch},), strict=False)
        except Exception as error:
            if "batch" in str(error) and ("specialized" in str(error) or "constraint" in str(error).lower()):
                raise UserError(
                    f"the model's batch is fixed to {example.shape[0]} images by its own code: "
                    "let it take any batch (x.shape[0] instead of a number) and try again"
                ) from error
            raise UserError(f"torch.export can't trace the model: {_first_line(error)}") from error
        einsum = torch.ops.aten.einsum.default
        program = program.run_decompositions({einsum: torch.export.default_decompositions()[einsum]})
        traced = program.module(check_guards=False)
    for node in traced.graph.nodes:
        if node.target in _VIEWS:
            # Whether a view can be had depends on strides, which differ from one attention kernel to another.
            node.target = torch.ops.aten.reshape.default
    return GraphModule(traced, traced.graph)


def to_canonical(module: nn.Module, example: Tensor) -> Traced:
    """The model in the ViT dialect, its parameters copied. A graph that is canonical already is only copied.

    Raises UserError where nothing prunable is recognised (a CNN, a post-LN transformer, windows, …).
    """
    if isinstance(module, GraphModule) and _canonical(module):
        _try(module, example)
        return Traced(copy.deepcopy(module), ())
    steps: list[Pass] = [DropIdentities(), Canonicalize(example)]
    try:
        result = run_passes(trace(module, example), steps)
    except PassError as error:
        raise UserError(f"the model can't be pruned: {str(error).removeprefix('Canonicalize: ')}") from error
    notes = tuple(note.removeprefix("Canonicalize: ") for note in result.notes if note.startswith("Canonicalize"))
    for parameter in result.graph_module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return Traced(result.graph_module.eval(), notes)


def at_rest(module: nn.Module) -> nn.Module:
    """A copy in eval mode. Programs of torch.export refuse eval(): they were traced in one mode and stay in it."""
    module = copy.deepcopy(module)
    with suppress(NotImplementedError):
        module.eval()
    return module


def _canonical(module: GraphModule) -> bool:
    try:
        is_canonical(module)
    except PassError:
        return False
    return True


def _try(module: nn.Module, example: Tensor) -> None:
    types = {str(one.dtype) for one in module.parameters() if one.is_floating_point()} - {str(example.dtype)}
    if types:
        raise UserError(
            f"the model has {', '.join(sorted(types))} weights and the images are {example.dtype}: "
            "convert one to the other, with model.float() or images.float()"
        )
    size = "×".join(str(n) for n in example.shape[1:])
    try:
        with torch.no_grad():
            logits = module(example)
    except Exception as error:
        raise UserError(f"the model does not take images of {size}: {_first_line(error)}; give their size") from error
    if not isinstance(logits, Tensor) or logits.dim() != 2 or logits.shape[0] != example.shape[0]:
        what = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(
            f"the model gives {what} for {example.shape[0]} images of {size}: logits (batch, classes) wanted"
        )
    if not bool(torch.isfinite(logits).all()):
        raise UserError("the model's logits are not finite (NaN or infinite): its weights are damaged")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


@contextmanager
def _no_fast_path() -> Iterator[None]:
    """nn.MultiheadAttention's fast path is one opaque operator, with nothing in it to recognise."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


@contextmanager
def _quiet() -> Iterator[None]:
    logger = logging.getLogger("torch.export")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)

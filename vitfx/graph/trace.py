"""nn.Module -> FX graph of ATen operators -> canonical graph, on torch.export."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch._dynamo.exc import UserError as TorchUserError
from torch._dynamo.exc import UserErrorType
from torch.export import Dim, ExportedProgram
from torch.fx import GraphModule

from passes.base import PassError, PassResult, run_passes
from passes.canonicalize import Canonicalize
from passes.remove_no_ops import RemoveNoOps
from passes.stream import is_canonical
from vitfx.graph.chosen_classes import ChosenClasses, keep_classes
from vitfx.support.errors import UserError
from vitfx.support.quiet import quietly

_GREATEST_BATCH = 4096
_DTYPES = (torch.float32, torch.float64)
_VIEWS = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)


@dataclass(frozen=True)
class Traced:
    """A canonical graph and what the user should know of it."""

    graph_module: GraphModule
    notes: tuple[str, ...]  #: which sublayers are not prunable, and why


def trace(module: nn.Module, example: Tensor) -> GraphModule:
    """The module's ATen graph with a dynamic batch, in eval mode; the module stays as it is.

    In-place operators, regions of another grad mode and einsum become plain operators.
    example: (B ≥ 2, C, H, W). Raises UserError where the module does not take such images, fixes its batch, or can't
    be traced.
    """
    module = at_rest(module)
    _try(module, example)
    return aten_graph(module, example)


def aten_graph(module: nn.Module, example: Tensor) -> GraphModule:
    """As `trace`, of a module in eval mode that takes the example; the graph shares its parameters."""
    batch = Dim("batch", min=1, max=_GREATEST_BATCH)
    with quietly(), _no_fast_path(), torch.no_grad():
        try:
            program = export_program(module, example, batch)
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"torch.export can't trace the model: {first_line(error)}") from error
        einsum = torch.ops.aten.einsum.default
        program = program.run_decompositions({einsum: torch.export.default_decompositions()[einsum]})
        traced = program.module(check_guards=False)
    for node in traced.graph.nodes:
        if node.target in _VIEWS:
            # Whether a view is possible depends on strides, which differ from one attention kernel to another.
            node.target = torch.ops.aten.reshape.default
    return GraphModule(traced, traced.graph)


def export_program(module: nn.Module, example: Tensor, batch: Dim) -> ExportedProgram:
    """torch.export's program for a batch of any size. Raises UserError where the module's own code fixes or limits it.

    The kind of torch's error tells that, whatever its message says: no size but the batch is free.
    """
    try:
        return torch.export.export(module, (example,), dynamic_shapes=({0: batch},), strict=False)
    except TorchUserError as error:
        if error.error_type is not UserErrorType.CONSTRAINT_VIOLATION:
            raise
        raise UserError(
            "the model's forward() fixes or limits the batch size: write it for any number of images, "
            "with x.shape[0] in place of a constant"
        ) from error


def to_canonical(module: nn.Module, example: Tensor) -> Traced:
    """The model in the ViT dialect, with copies of its parameters. A graph that is canonical already is only copied.

    Raises UserError where nothing prunable is recognised (a CNN, a post-LN transformer, windows, …).
    """
    if isinstance(module, ChosenClasses):
        whole = to_canonical(module.model, example)
        graph_module, notes = keep_classes(whole.graph_module, module, example)
        return Traced(graph_module, (*whole.notes, *notes))
    if isinstance(module, GraphModule) and _canonical(module):
        _try(module, example)
        return Traced(copy.deepcopy(module), ())
    results: list[PassResult] = []
    try:
        run_passes(
            trace(module, example),
            [RemoveNoOps(), Canonicalize(example)],
            lambda _, result: results.append(result),
            consume=True,
        )
    except PassError as error:
        raise UserError(f"the model can't be pruned: {error.reason}") from error
    result = results[-1]
    for parameter in result.graph_module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    return Traced(result.graph_module.eval(), result.notes)


def at_rest(module: nn.Module) -> nn.Module:
    """A copy in eval mode, which shares parameters that are on the CPU already: move it nowhere else, and train the
    original. Programs of torch.export refuse eval(): they were traced in one mode and stay in it."""
    shared = {id(weight): weight for weight in module.parameters() if weight.device.type == "cpu"}
    module = copy.deepcopy(module, shared)
    with suppress(NotImplementedError):
        module.eval()
    return module


def check_dtype(module: nn.Module) -> None:
    """Raises UserError for weights of a type that rounds more than any proof allows."""
    coarse = {str(weight.dtype) for weight in module.parameters() if weight.is_floating_point()}
    coarse -= {str(dtype) for dtype in _DTYPES}
    if coarse:
        raise UserError(
            f"the model has {', '.join(sorted(coarse))} weights, which round too coarsely for the proofs: "
            "convert it to float32 with model.float()"
        )


def _canonical(module: GraphModule) -> bool:
    try:
        is_canonical(module)
    except PassError:
        return False
    return True


def _try(module: nn.Module, example: Tensor) -> None:
    check_dtype(module)
    types = {str(weight.dtype) for weight in module.parameters() if weight.is_floating_point()} - {str(example.dtype)}
    if types:
        raise UserError(
            f"the model has {', '.join(sorted(types))} weights and the images are {example.dtype}: "
            "convert one to the other, with model.float() or images.float()"
        )
    size = "×".join(str(n) for n in example.shape[1:])
    try:
        with torch.no_grad(), quietly():
            logits = module(example)
    except Exception as error:
        raise UserError(
            f"the model does not take images of {size}: {first_line(error)}; give images of its size"
        ) from error
    if not isinstance(logits, Tensor) or not logits.dim() or logits.shape[0] != example.shape[0]:
        answer = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise UserError(
            f"the model returns {answer} for {example.shape[0]} images of {size}: "
            "wrap it to return one tensor, with an answer for each image"
        )
    if not bool(torch.isfinite(logits).all()):
        raise UserError("the model's logits are not finite (NaN or infinite): its weights are damaged")


def first_line(error: Exception) -> str:
    """Of its message; the error's class where it has none."""
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

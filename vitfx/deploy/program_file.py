"""A model as a program of torch.export (.pt2), which torch alone loads: any batch size, weights inside."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from vitfx.deploy.export import ExportMismatch, greatest_difference, to_program
from vitfx.support.errors import in_a_line
from vitfx.support.files import write_aside

_COMPARED_IMAGES = 8
_SHAPES = "val"
"""The one note at a node that loading needs. The others tell where the code lay that was traced, with its paths."""


def write_program(
    path: Path, module: nn.Module, pixels: Tensor, metadata: Mapping[str, str], reference: nn.Module | None = None
) -> float:
    """Exports a module, loads the file as its user does, compares it, and removes it where it differs.

    module: as `vitfx.deploy.export.to_program` takes it.
    pixels: (B, C, H, W) with B >= 2; eight are enough, and no more are compared.
    metadata: goes into the archive, a file for each entry, which torch.export.load(…, extra_files=…) reads.
    reference: what the file is compared with, the module itself by default.
    Returns the greatest relative difference. Raises ExportMismatch and WriteError.
    """
    pixels = pixels[:_COMPARED_IMAGES]
    write_aside(path, _saved(to_program(module, pixels[:2]), metadata))
    try:
        return greatest_difference(_loaded(path), reference or module, pixels, path)
    except ExportMismatch:
        path.unlink()
        raise


def _loaded(path: Path) -> Callable[[Tensor], Tensor]:
    """pixels (B, C, H, W) -> logits on the CPU. Both raise ExportMismatch where torch fails."""
    with _refusals(f"{path} can't be loaded"):
        module = torch.export.load(path).module()

    def run(pixels: Tensor) -> Tensor:
        with torch.no_grad(), _refusals(f"{path} does not run on a batch of {len(pixels)}"):
            logits: Tensor = module(pixels)
        return logits.cpu()

    return run


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # torch has no class of its own for what its programs refuse.
        raise ExportMismatch(f"{what}: {in_a_line(error)}") from error


def _saved(program: ExportedProgram, metadata: Mapping[str, str]) -> bytes:
    for graph_module in program.graph_module.modules():
        if isinstance(graph_module, torch.fx.GraphModule):
            for node in graph_module.graph.nodes:
                node.meta = {name: note for name, note in node.meta.items() if name == _SHAPES}
    # They are the user's images.
    program.example_inputs = None
    program._state_dict = {name: _own(weight) for name, weight in program.state_dict.items()}
    archive = io.BytesIO()
    torch.export.save(program, archive, extra_files=dict(metadata))
    return archive.getvalue()


def _own(weight: Tensor) -> Tensor:
    """Itself, or a copy where it is a view: that would bring all that its storage holds."""
    if weight.is_contiguous() and weight.untyped_storage().nbytes() == weight.nbytes:
        return weight
    copied = weight.detach().contiguous().clone()
    return nn.Parameter(copied, requires_grad=weight.requires_grad) if isinstance(weight, nn.Parameter) else copied

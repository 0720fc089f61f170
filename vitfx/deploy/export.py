"""A module as one ONNX file: any batch size, checked, and compared with the module."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import onnx
import onnx_ir.passes.common as ir_passes
import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.fx import GraphModule

from vitfx.deploy.onnx_file import seal
from vitfx.deploy.runtime import open_session
from vitfx.graph.merge_oracle import clearly_merged
from vitfx.graph.trace import export_program
from vitfx.images.preprocess import Preprocess
from vitfx.models.checkpoint import LoadedModel
from vitfx.support.errors import UserError
from vitfx.support.files import write_aside
from vitfx.support.quiet import quietly
from vitfx.version import VERSION

OPSET = 23
"""The default; with it attention is one operator of the standard."""
OLDEST_OPSET = 18
"""The oldest that torch's exporter writes itself: converting to older ones fails for LayerNormalization and Resize."""
BATCH = "batch"
INPUT = "pixels"
OUTPUT = "logits"
# Protocol buffers hold no more than this in one message, and the artifact is one file.
_MOST_BYTES = 2**31 - 1
_COMPARED_IMAGES = 8


class ExportMismatch(Exception):
    """The ONNX file and the module do not compute the same logits."""


def export_onnx(module: nn.Module, path: Path, example: Tensor, metadata: Mapping[str, str]) -> None:
    """`to_onnx`, checked with `onnx.checker` and written to `path`."""
    write_onnx(to_onnx(module, example, metadata), path)


def write_onnx(model: onnx.ModelProto, path: Path) -> None:
    """Checks a model and writes it with a digest of all that is in it. Raises UserError where its batch is not free."""
    _require_free_batch(model)
    seal(model)
    contents = model.SerializeToString()
    onnx.checker.check_model(contents, full_check=True)
    write_aside(path, contents)


def export_checked(model: onnx.ModelProto, path: Path, module: nn.Module, pixels: Tensor) -> float:
    """Writes a model, compares the file with the module it was exported from, and removes it where they differ.

    pixels: as `compare_onnx` takes them; eight are enough, and no more are compared. Returns the greatest relative
    difference. Raises UserError as `write_onnx` does, and ExportMismatch.
    """
    write_onnx(model, path)
    try:
        return compare_onnx(path, module, pixels[:_COMPARED_IMAGES])
    except ExportMismatch:
        path.unlink()
        raise


def compare_onnx(path: Path, module: nn.Module, pixels: Tensor, tolerance: float = 1e-4) -> float:
    """The greatest |onnx - torch| / max|torch| over the logits, for all of `pixels` and for its first image.

    pixels: (B, C, H, W) with B >= 2, so that two batch sizes are compared, on the module's device. Where tokens merge,
    images whose merges rounding could change are left out.
    Raises ExportMismatch above the tolerance, and where ONNX Runtime refuses one of the batch sizes.
    """
    clear = clearly_merged(module, pixels)
    pixels = clear if len(clear) > 1 else pixels
    if len(pixels) < 2:
        raise UserError(f"{len(pixels)} image was given to compare ONNX with torch on: give 2 or more")
    session = open_session(path, torch.device("cpu"))
    return greatest_difference(session.run, module, pixels, path, tolerance)


def greatest_difference(
    run: Callable[[Tensor], Tensor], module: nn.Module, pixels: Tensor, path: Path, tolerance: float = 1e-4
) -> float:
    """As `compare_onnx`, for a file that is open. run: pixels (B, C, H, W) -> the file's logits (B, K)."""
    return max(_difference(run, module, part, path, tolerance) for part in (pixels[:1], pixels))


def _difference(
    run: Callable[[Tensor], Tensor], module: nn.Module, pixels: Tensor, path: Path, tolerance: float
) -> float:
    with _evaluating(module), torch.no_grad():
        expected = module(pixels).double().cpu()
    try:
        logits = run(pixels).double()
    except UserError as error:
        raise ExportMismatch(f"{path} does not run on a batch of {len(pixels)}: {error}") from error
    if logits.shape != expected.shape:
        raise ExportMismatch(f"{path} gives logits {tuple(logits.shape)} where torch gives {tuple(expected.shape)}")
    scale = expected.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    difference = float((logits - expected).abs().max() / scale)
    # Written so that NaN fails.
    if not difference <= tolerance:
        raise ExportMismatch(
            f"{path} differs from torch by {difference:.1e} of the greatest logit at batch {len(pixels)}, "
            f"more than {tolerance:.0e}"
        )
    return difference


def to_onnx(module: nn.Module, example: Tensor, metadata: Mapping[str, str], opset: int = OPSET) -> onnx.ModelProto:
    """`module` with a batch of any size.

    opset: of the operators, from `OLDEST_OPSET` to `OPSET`.

    module, example: as `to_program` takes them, which raises.
    metadata: goes to the file's `metadata_props`, keys and values as they are.
    """
    program = to_program(module, example)
    with quietly(), _evaluating(module):
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            external_data=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim(BATCH, min=1)},),
            optimize=True,
            verbose=False,
        )
    assert exported is not None
    # The exporter records source lines with their paths: a third of a small file, and private.
    ir_passes.ClearMetadataAndDocStringPass()(exported.model)
    exported.model.metadata_props.update(metadata)
    return exported.model_proto


def to_program(module: nn.Module, example: Tensor) -> ExportedProgram:
    """`module` as torch.export's program, with a batch of any size.

    example: (B, C, H, W) pixels with B >= 2, in the module's dtype and on its device.
    The module is exported in evaluation mode and left as it was. Raises UserError where the module fixes the batch
    size, where an ONNX file of it would pass 2 GiB, and where the example holds a single image.
    """
    if len(example) < 2:
        # torch.export takes a dimension of size 1 for a constant.
        raise UserError(f"the example batch has {len(example)} image: ONNX export needs 2 or more to see the batch")
    size = sum(tensor.nbytes for tensor in (*module.parameters(), *module.buffers()))
    if size > _MOST_BYTES:
        raise UserError(
            f"the model's weights take {size / 2**30:.1f} GiB and one ONNX file holds 2 GiB: prune more of it first"
        )
    with quietly(), _evaluating(module):
        return export_program(module, example, torch.export.Dim(BATCH, min=1))


def _require_free_batch(model: onnx.ModelProto) -> None:
    for value in (*model.graph.input, *model.graph.output):
        dimensions = value.type.tensor_type.shape.dim
        if not dimensions or dimensions[0].dim_param != BATCH:
            fixed = [d.dim_param or d.dim_value for d in dimensions]
            raise UserError(
                f"the model's {value.name} have the shape {fixed} in ONNX, "
                "where the first must be any batch size: give a model that treats each image by itself"
            )


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode, without nn.MultiheadAttention's fast path, whose operator has no ONNX counterpart."""
    # Flags one by one: modules from torch.export refuse .eval(), and each part may have its own.
    before = [(part, part.training) for part in module.modules()]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    for part, _ in before:
        part.training = False
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        for part, training in before:
            part.training = training


OF_MODULE = "torch.onnx.export of the module"
OF_GRAPH = "torch.onnx.export of the canonical graph, because that of the module itself fails"


def export_plain(
    module: nn.Module, canonical: GraphModule, example: Tensor, metadata: Mapping[str, str], opset: int = OPSET
) -> tuple[onnx.ModelProto, str]:
    """The plain export, and what was exported: the user's own module, or, where torch's exporter refuses that, its
    canonical graph, which has fewer nodes and is a little faster. example: see `vitfx.deploy.export.to_onnx`."""
    try:
        return to_onnx(module, example, metadata, opset), OF_MODULE
    except UserError:
        raise
    except Exception:  # torch's exporter takes fewer modules than the tracer, and raises errors of any class.
        return to_onnx(canonical, example, metadata, opset), OF_GRAPH


def onnx_metadata(model: LoadedModel, facts: Mapping[str, Any], preprocess: Preprocess | None = None) -> dict[str, str]:
    """What every ONNX file says of itself: the version of vitfx, the model that it comes from, how to prepare images,
    the names of the classes, and `facts`.

    preprocess: where the file wants another one than the model. What is not text goes in as JSON.
    """
    record: dict[str, Any] = {
        "vitfx": VERSION,
        "model": model.source,
        "model_fingerprint": model.fingerprint,
        "preprocess": (preprocess or model.preprocess).to_json(),
        **({} if model.classes is None else {"classes": model.classes}),
        **facts,
    }
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in record.items()}

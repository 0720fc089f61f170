"""pruned.onnx in another numeric precision than float32: written beside it, measured beside it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor

from vitfx.deploy.evaluate import Scores
from vitfx.deploy.export import write_onnx
from vitfx.deploy.openvino_runtime import has_bfloat16
from vitfx.deploy.precisions import BF16, FP16, FP32, INT8, ONNX_RUNTIME, OPENVINO
from vitfx.deploy.quantize import Quantized, to_bfloat16, to_float16, to_int8
from vitfx.graph.divergence import CLASSES, Divergence
from vitfx.support.devices import is_gpu
from vitfx.support.errors import UserError
from vitfx.support.files import remove_results
from vitfx.support.timing import Timing, ratio

CALIBRATED_IMAGES = 128
"""More images only widen the range that one outlier sets."""
HALVES = ("pruned-fp16.onnx", "pruned-bf16.onnx")
FILES = (*HALVES, "pruned-int8.onnx")


def check_precision(precision: str, device: torch.device, runtime: str = ONNX_RUNTIME) -> None:
    """Raises UserError where device and runtime have no fast arithmetic of this precision."""
    if precision == BF16 and runtime != OPENVINO:
        raise UserError(
            "bf16 is computed by OpenVINO, on CPUs that have it, and by no kernel of ONNX Runtime's: measure it there, "
            "with `target` openvino:bf16:batch=8, or `runtime` openvino"
        )
    if precision == BF16 and not has_bfloat16():
        raise UserError("this CPU has no bfloat16 arithmetic: leave out bf16, or give `precision` int8")
    if precision == FP16 and not is_gpu(device):
        raise UserError(
            f"fp16 is slow on {device}, for which ONNX Runtime has no float16 kernels: give a GPU, or `precision` int8"
        )
    if precision == INT8 and is_gpu(device):
        raise UserError(
            f"int8 is slow on {device}, where ONNX Runtime undoes the quantization of linear maps: "
            "give `device` cpu, or `precision` fp16"
        )


@dataclass(frozen=True)
class Rounding:
    """How a file is quantized."""

    pixels: Tensor  #: (N, C, H, W), for the ranges
    divergence: Divergence = CLASSES  #: by which the maps are chosen that stay float32
    spared: tuple[str, ...] | None = None  #: their names where they have been chosen already


def write_precision(folder: Path, precision: str, rounding: Rounding) -> dict[str, Any]:
    """Writes pruned-{precision}.onnx from pruned.onnx, and returns how it was made; does nothing for fp32.

    rounding: for int8.
    The file is not compared with torch: another precision gives other logits, and their cost is measured. Raises
    UserError where nothing can be quantized.
    """
    remove_results(folder, FILES)
    if precision == FP32:
        return {}
    model = onnx.load(folder / "pruned.onnx")
    if precision == INT8:
        return write_int8(round_as_asked(model, rounding), folder / "pruned-int8.onnx")
    path = folder / f"pruned-{precision}.onnx"
    _write(to_float16(model) if precision == FP16 else to_bfloat16(model), path, {"precision": precision})
    return {"name": precision, "file": path.name}


def round_as_asked(model: onnx.ModelProto, rounding: Rounding) -> Quantized:
    """In int8. Raises UserError where nothing can be quantized."""
    int8 = to_int8(model, rounding.pixels[:CALIBRATED_IMAGES])
    if rounding.spared is not None:
        return int8.sparing(rounding.spared)
    return int8.sparing_dearest(rounding.pixels, rounding.divergence)


def write_int8(int8: Quantized, path: Path) -> dict[str, Any]:
    """Writes a quantized model; how it was made, for reports. The file's metadata name the maps that stay float32."""
    _write(int8.model, path, {"precision": INT8, "float32": json.dumps(int8.kept)})
    return {
        "name": INT8,
        "file": path.name,
        "quantized": int8.quantized,
        "kept": list(int8.kept),
        "images": int8.images,
    }


def _write(model: onnx.ModelProto, path: Path, facts: Mapping[str, str]) -> None:
    told = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, {**told, **facts})
    write_onnx(model, path)


def precision_record(
    made: Mapping[str, Any], scores: Mapping[str, Scores], timings: Mapping[int, Mapping[str, Timing]]
) -> dict[str, Any] | None:
    """For report.json; None for fp32. made: what `write_precision` returned. Speed-ups are over float32's baseline."""
    if not made:
        return None
    name = Path(made["file"]).stem
    own = scores[name]
    return {
        **made,
        "loss": own.loss,
        "accuracy": own.accuracy,
        **({} if own.by_choice is None else {"accuracy_by_choice": list(own.by_choice)}),
        "kl": own.kl,
        "agreement": own.agreement,
        "latency_ms": {str(batch): times[name].median_ms for batch, times in timings.items()},
        "speedup_by_batch": {
            str(batch): ratio(times["baseline"], times[name]).paired for batch, times in timings.items()
        },
        "time_of_fp32": {str(batch): ratio(times[name], times["pruned"]).paired for batch, times in timings.items()},
        "evaluation_seconds": own.seconds,
    }


def precision_fact(record: Mapping[str, Any] | None) -> list[str]:
    """What a report says of the third file besides its numbers: a sentence or two, or nothing."""
    if record is None:
        return []
    sentence = f"{record['file']} is pruned.onnx in {record['name']}"
    if record["name"] == INT8:
        sentence += (
            f": {record['quantized']} linear maps quantized, a scale for each output channel of the weights, ranges of "
            f"their inputs from {record['images']} calibration images; {', '.join(record['kept'])} stays float32"
        )
    return [f"{sentence}. The table has its accuracy; it is not compared with torch.", *slower(record)]


def slower(record: Mapping[str, Any] | None) -> list[str]:
    """A warning where the file is slower than the float32 one at some batch, else nothing."""
    times = {} if record is None else record.get("time_of_fp32", {})
    batches = [f"{batch} ({share:.2f} of its time)" for batch, share in times.items() if share > 1]
    if record is None or not batches:
        return []
    where = ", ".join(batches)
    return [f"{record['file']} is slower here than the float32 file at batch {where}: deploy that one there"]

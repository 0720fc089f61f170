"""pruned.onnx in another numeric precision than float32: written beside it, measured beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor

from vitfx.deploy.evaluate import Scores
from vitfx.deploy.export import write_onnx
from vitfx.deploy.precisions import FP16, FP32, INT8
from vitfx.deploy.quantize import to_float16, to_int8
from vitfx.support.devices import is_gpu
from vitfx.support.errors import UserError
from vitfx.support.files import remove_results
from vitfx.support.timing import Timing, ratio

CALIBRATED_IMAGES = 128
"""More images only widen the range that one outlier sets."""
HALVES = ("pruned-fp16.onnx",)
FILES = (*HALVES, "pruned-int8.onnx")


def check_precision(precision: str, device: torch.device) -> None:
    """Raises UserError where the device has no fast arithmetic of this precision."""
    if precision == FP16 and not is_gpu(device):
        raise UserError(
            f"fp16 is slow on {device}, for which ONNX Runtime has no float16 kernels: give a GPU, or `precision` int8"
        )
    if precision == INT8 and is_gpu(device):
        raise UserError(
            f"int8 is slow on {device}, where ONNX Runtime undoes the quantization of linear maps: "
            "give `device` cpu, or `precision` fp16"
        )


def write_precision(folder: Path, precision: str, pixels: Tensor) -> dict[str, Any]:
    """Writes pruned-{precision}.onnx from pruned.onnx, and returns how it was made; does nothing for fp32.

    pixels: (N, C, H, W), on which int8's scales are calibrated.
    The file is not compared with torch: another precision gives other logits, and their cost is measured. Raises
    UserError where nothing can be quantized.
    """
    remove_results(folder, FILES)
    if precision == FP32:
        return {}
    model = onnx.load(folder / "pruned.onnx")
    made: dict[str, Any] = {"name": precision, "file": f"pruned-{precision}.onnx"}
    if precision == FP16:
        changed = to_float16(model)
    else:
        int8 = to_int8(model, pixels[:CALIBRATED_IMAGES])
        changed = int8.model
        made |= {"quantized": int8.quantized, "kept": list(int8.kept), "images": int8.images}
    for entry in changed.metadata_props:
        if entry.key == "precision":
            entry.value = precision
    write_onnx(changed, folder / made["file"])
    return made


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
        "kl": own.kl,
        "agreement": own.agreement,
        "latency_ms": {str(batch): times[name].median_ms for batch, times in timings.items()},
        "speedup_by_batch": {
            str(batch): ratio(times["baseline"], times[name]).paired for batch, times in timings.items()
        },
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
    return [f"{sentence}. The table has its accuracy; it is not compared with torch."]

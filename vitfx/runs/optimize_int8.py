"""The third file of `vitfx.optimize`: all forms in int8, to be timed as such, or the best one in bf16, and its cost."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import Tensor

from vitfx.deploy.deployment import Deployed
from vitfx.deploy.export import write_onnx
from vitfx.deploy.precision_file import CALIBRATED_IMAGES, Rounding, round_as_asked, slower, write_int8
from vitfx.deploy.precisions import BF16, ONNX_RUNTIME, OPENVINO
from vitfx.deploy.quantize import Quantized, to_bfloat16, to_int8
from vitfx.deploy.runtimes import open_on
from vitfx.graph.divergence import Divergence, make_divergence
from vitfx.graph.kinds import WORDS
from vitfx.support.progress import Watcher
from vitfx.support.text import digits
from vitfx.support.timing import Timing, ratio

INT8_IMAGES = CALIBRATED_IMAGES * 4 // 3
"""A quarter of them is left out of the calibration, to say what int8 costs."""
_BATCH = 16


def quantize_forms(deployed: Mapping[str, Deployed], pixels: Tensor, watcher: Watcher) -> dict[str, Quantized]:
    """By form. pixels: (N, C, H, W), as the files take them. Raises UserError where nothing can be quantized."""
    calibration, _ = _split(pixels)
    quantized = {}
    for name, candidate in deployed.items():
        watcher.say(f"quantizing form {name}")
        quantized[name] = to_int8(candidate.model, calibration)
    return quantized


def write_int8_compared(
    int8: Quantized, path: Path, exact: Path, pixels: Tensor, kind: str, runtime: str = ONNX_RUNTIME
) -> dict[str, Any]:
    """Writes the file, with the maps in float32 that this helps most, and compares its answers with the float32 file's
    on images that it was not calibrated on.

    kind: of the answers, one of `vitfx.graph.kinds.KINDS`. runtime: what runs both.
    """
    calibration, held_out = _split(pixels)
    made = write_int8(int8.sparing_dearest(calibration, _measure(exact, calibration, kind)), path)
    divergence = _divergence(exact, path, held_out, kind, runtime)
    return {**made, "task": kind, "divergence": divergence, "held_out": len(held_out)}


def write_bf16_compared(
    model: onnx.ModelProto, path: Path, exact: Path, pixels: Tensor, kind: str, runtime: str
) -> dict[str, Any]:
    """Writes the file in bf16, and compares its answers with the float32 file's; see `write_int8_compared`."""
    write_onnx(to_bfloat16(model), path)
    divergence = _divergence(exact, path, pixels, kind, runtime)
    return {"name": BF16, "file": path.name, "task": kind, "divergence": divergence, "held_out": len(pixels)}


def bf16_compared(model: onnx.ModelProto, pixels: Tensor, kind: str) -> tuple[onnx.ModelProto, float]:
    """In memory: the model in bf16, and its divergence from this one on OpenVINO, which computes in that."""
    narrow = to_bfloat16(model)
    return narrow, _divergence(model.SerializeToString(), narrow.SerializeToString(), pixels, kind, OPENVINO)


def int8_compared(model: onnx.ModelProto, pixels: Tensor, kind: str) -> tuple[Quantized, float]:
    """In memory: the quantized model, and its divergence from this one on images that it was not calibrated on.

    pixels: (N, C, H, W), as the model takes them. Raises UserError where nothing can be quantized.
    """
    calibration, held_out = _split(pixels)
    exact = model.SerializeToString()
    int8 = round_as_asked(model, Rounding(calibration, _measure(exact, calibration, kind)))
    return int8, _divergence(exact, int8.model.SerializeToString(), held_out, kind, ONNX_RUNTIME)


def add_times(made: dict[str, Any], timings: Mapping[int, Mapping[str, Timing]]) -> dict[str, Any]:
    """What `write_int8_compared` returned with its times as parts of the other files'."""
    name = Path(made["file"]).stem
    shares = {
        of: {str(batch): ratio(times[name], times[of]).paired for batch, times in timings.items()}
        for of in ("baseline", "optimized")
    }
    return {**made, "time_left": shares["baseline"], "time_of_fp32": shares["optimized"]}


def precision_facts(record: Mapping[str, Any] | None) -> list[str]:
    """For the report: sentences, or nothing."""
    if record is None:
        return []
    words = WORDS[record["task"]]
    times = ", ".join(f"{share:.3f} at batch {batch}" for batch, share in record["time_left"].items())
    how, others = "matrices in bfloat16, in which OpenVINO computes", ""
    if record["name"] != BF16:
        how = f"{record['quantized']} linear maps in int8, ranges from {record['images']} images, "
        how, others = f"{how}{', '.join(record['kept'])} in float32", "other "
    return [
        f"{record['file']}: {how}. Time as a part of baseline.onnx's: {times}. {words.divergence} from "
        f"optimized.onnx {digits(record['divergence'])} on {record['held_out']} {others}images.",
        *(f"{warning}." for warning in slower(record)),
    ]


def _split(pixels: Tensor) -> tuple[Tensor, Tensor]:
    held = max(1, len(pixels) // 4)
    return pixels[:-held], pixels[-held:]


def _measure(exact: Path | bytes, pixels: Tensor, kind: str) -> Divergence:
    """By which maps are chosen, scaled to the model's answers to a few of these images."""
    return make_divergence(kind, answers_of(exact, pixels[:_BATCH]))


def _divergence(exact: Path | bytes, rounded: Path | bytes, pixels: Tensor, kind: str, runtime: str) -> float:
    answers, others = (answers_of(file, pixels, runtime) for file in (exact, rounded))
    return float(make_divergence(kind, answers)(answers, others).mean())


def answers_of(model: Path | bytes, pixels: Tensor, runtime: str = ONNX_RUNTIME) -> Tensor:
    """Of an ONNX file, or its bytes, on the CPU. pixels: (N, C, H, W), as it takes them."""
    session = open_on(runtime, model, torch.device("cpu"))
    return torch.cat([session.run(part) for part in pixels.split(_BATCH)])

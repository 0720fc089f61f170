"""float16 for CUDA: half the bytes, and the fused attention kernels that float32 does not get."""

from __future__ import annotations

import onnx
from onnxruntime.transformers.float16 import convert_float_to_float16


def to_float16(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with float16 weights and arithmetic; its input and output stay float32, its metadata as they are."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    return convert_float_to_float16(copied, keep_io_types=True)

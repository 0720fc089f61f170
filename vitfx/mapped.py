"""Tensors in a file that is mapped into memory: the system writes out what is not in use."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from vitfx.files import writing


def mapped(folder: Path, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Zeros of this shape, on the CPU, in a file of the folder that has no name any more: its room is free again once
    nothing refers to the tensor, even if the process is killed.

    Raises WriteError where the folder does not take that much.
    """
    size = math.prod(shape)
    with writing(folder), tempfile.NamedTemporaryFile(dir=folder, prefix=".vitfx-") as file:
        # Without room for all of it the process would be killed at some write in the middle of its work.
        os.posix_fallocate(file.fileno(), 0, max(1, size * dtype.itemsize))
        return torch.from_file(file.name, shared=True, size=size, dtype=dtype).view(tuple(shape))

"""Tensors in a file that is mapped into memory: the system writes out what is not in use."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from vitfx.support.files import writing


def mapped(folder: Path, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Zeros of this shape, on the CPU, in a file of the folder that has no name: its room is free again once nothing
    refers to the tensor, even if the process is killed.

    Raises WriteError where the folder does not take that much.
    """
    count = math.prod(shape)
    size = max(1, count * dtype.itemsize)
    with writing(folder), tempfile.TemporaryFile(dir=folder) as file:
        file.truncate(size)
        if hasattr(os, "posix_fallocate"):
            # Without room for all of it the process would be killed at some write in the middle of its work.
            os.posix_fallocate(file.fileno(), 0, size)
        return torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=dtype, count=count).view(tuple(shape))

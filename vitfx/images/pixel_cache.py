"""Images decoded once: bytes in memory where they are few, else in a file that is mapped into memory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitfx.images.image_set import ImageSet
from vitfx.support.errors import UserError
from vitfx.support.files import writing

IN_MEMORY = 64 * 2**20
"""Bytes up to which images are decoded for each run, in seconds, instead of being kept on the disk."""

_PIXELS, _INDEX = "pixels.bin", "index.json"
_CHUNK = 256
_DAY = 24 * 3600


@dataclass(frozen=True, eq=False)
class Pixels:
    """Decoded images, in memory or in a file. Raises ValueError where they are in neither, or in both."""

    shape: tuple[int, int, int, int]  #: (N, C, H, W)
    labels: Tensor  #: int64 (N,)
    skipped: int  #: corrupt images that were left out
    fingerprint: str  #: sha256 of the undecoded images with their names and labels
    memory: Tensor | None  #: uint8 (N, C, H, W)
    path: Path | None  #: of a file with the same bytes

    def __post_init__(self) -> None:
        if (self.memory is None) == (self.path is None):
            raise ValueError("pixels lie either in memory or in a file: give one of the two")

    def __len__(self) -> int:
        return self.shape[0]

    def rows(self, indices: Tensor) -> Tensor:
        """uint8 (B, C, H, W), a copy."""
        if self.memory is not None:
            return self.memory[indices]
        # Mapped for each batch, in microseconds, so that worker processes need nothing but the path.
        mapped = np.memmap(str(self.path), dtype=np.uint8, mode="r", shape=self.shape)
        return torch.from_numpy(mapped[indices.numpy()])


def default_cache() -> Path:
    """vitfx's folder in XDG_CACHE_HOME, or in ~/.cache where that is not set."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vitfx"


def open_pixels(
    images: ImageSet,
    size: tuple[int, int],
    folder: Path,
    *,
    in_memory: int = IN_MEMORY,
    progress: Callable[[int, int], None] | None = None,
) -> Pixels:
    """All whole images of a labelled set, resized to `size` (height, width), as `Preprocess.at` resizes and crops them.

    folder: where decoded images are kept, to be found again by what they were made of
    in_memory: bytes up to which they are kept in memory instead

    Raises UserError where the set has no labels or no whole image, or the folder can't be written.
    """
    if images.labels is None:
        raise UserError("training needs labels: give images in a folder for each class")
    channels = images.preprocess.channels
    plain = replace(images, labels=None, preprocess=images.preprocess.at(size).plain())
    key = plain.fingerprint()
    shape = (len(images), channels, *size)
    memory: Tensor | None = None
    path: Path | None = None
    if int(np.prod(shape)) <= in_memory:
        chunks: list[Tensor] = []
        kept = _decode(plain, lambda chunk: chunks.append(torch.from_numpy(chunk)), progress)
        memory = torch.cat(chunks)
    else:
        entry = folder / key[:32]
        if not _is_whole(entry, shape):
            _write_entry(entry, shape, plain, progress)
        kept, path = json.loads((entry / _INDEX).read_text()), entry / _PIXELS
    labelled = hashlib.sha256(json.dumps([key, images.labels]).encode()).hexdigest()
    labels = torch.tensor(images.labels)[kept]
    return Pixels((len(kept), *shape[1:]), labels, len(images) - len(kept), labelled, memory, path)


def _decode(
    plain: ImageSet, take: Callable[[np.ndarray], object], progress: Callable[[int, int], None] | None
) -> list[int]:
    """Gives uint8 (M, C, H, W) to `take`, batch by batch; returns the positions of the images that are whole."""
    position = {name: index for index, name in enumerate(plain.names)}
    kept: list[int] = []
    done = 0
    for batch in plain.batches(_CHUNK):
        # Nearly every Preprocess has rounded to bytes before it scaled to 0..1.
        take((batch.pixels * 255).round().clamp(0, 255).to(torch.uint8).numpy())
        kept += [position[name] for name in batch.names]
        done += len(batch) + batch.skipped
        if progress is not None:
            progress(done, len(plain))
    return kept


def _is_whole(entry: Path, shape: tuple[int, int, int, int]) -> bool:
    try:
        kept = json.loads((entry / _INDEX).read_text())
        return (entry / _PIXELS).stat().st_size == len(kept) * int(np.prod(shape[1:]))
    except (OSError, ValueError):
        return False


def _write_entry(
    entry: Path, shape: tuple[int, int, int, int], plain: ImageSet, progress: Callable[[int, int], None] | None
) -> None:
    """Decodes into a folder of this run's own. An entry that another run has completed by then stays as it is."""
    with writing(entry, "`cache`"):
        entry.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(entry)
        aside = Path(tempfile.mkdtemp(".partial", f".{entry.name}.", entry.parent))
        try:
            with (aside / _PIXELS).open("wb") as file:
                kept = _decode(plain, lambda chunk: file.write(chunk.tobytes()), progress)
            (aside / _INDEX).write_text(json.dumps(kept))
            if not _is_whole(entry, shape):
                entry.mkdir(exist_ok=True)
                # File by file, so that a run that reads here misses none. The index completes the entry: it is last.
                for name in (_PIXELS, _INDEX):
                    (aside / name).replace(entry / name)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _remove_leftovers(entry: Path) -> None:
    """Removes what killed runs had written of this entry; a run may still be writing a younger one."""
    for partial in entry.parent.glob(f".{entry.name}.*.partial"):
        if partial.stat().st_mtime < time.time() - _DAY:
            shutil.rmtree(partial, ignore_errors=True)

"""Images decoded once: bytes in memory where they are few, else in a file that is mapped into memory."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vitfx.images.image_set import ImageSet
from vitfx.images.preprocess import Preprocess
from vitfx.support.errors import UserError
from vitfx.support.files import writing

IN_MEMORY = 64 * 2**20
"""Bytes up to which images are decoded anew for each run, in seconds, rather than kept on the disk."""

_PIXELS, _INDEX = "pixels.bin", "index.json"
_CHUNK = 256
_DAY = 24 * 3600


@dataclass(frozen=True, eq=False)
class Pixels:
    """Decoded images. labels: int64 (N,). skipped: corrupt images that were left out.

    fingerprint: sha256 of the undecoded images with their names and labels.
    """

    shape: tuple[int, int, int, int]
    labels: Tensor
    skipped: int
    fingerprint: str
    memory: Tensor | None
    path: Path | None

    def __len__(self) -> int:
        return self.shape[0]

    def rows(self, indices: Tensor) -> Tensor:
        """uint8 (B, C, H, W), a copy."""
        if self.memory is not None:
            return self.memory[indices]
        # Mapped anew for each batch, in microseconds: nothing to be passed to worker processes but the path.
        mapped = np.memmap(str(self.path), dtype=np.uint8, mode="r", shape=self.shape)
        return torch.from_numpy(mapped[indices.numpy()])


def default_cache() -> Path:
    """vitfx's folder in XDG_CACHE_HOME, which is ~/.cache where nothing else is said."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vitfx"


def open_pixels(
    images: ImageSet,
    size: tuple[int, int],
    folder: Path,
    *,
    in_memory: int = IN_MEMORY,
    progress: Callable[[int, int], None] | None = None,
) -> Pixels:
    """All whole images of a labelled set, resized to `size` (height, width), as `Preprocess` resizes them.

    folder: where decoded images are kept, found again by what they were made of; written aside, then renamed.

    Raises UserError where the set has no labels or no whole image, or the folder can't be written.
    """
    if images.labels is None:
        raise UserError("training needs labels: give images in folders by class")
    given = images.preprocess
    zero, one = (0.0,) * given.channels, (1.0,) * given.channels
    plain = ImageSet(
        images.names, images.sources, None, Preprocess(size, given.interpolation, given.antialias, zero, one)
    )
    key = plain.fingerprint()
    shape = (len(images), given.channels, *size)
    if int(np.prod(shape)) <= in_memory:
        chunks: list[Tensor] = []
        kept = _decode(plain, lambda chunk: chunks.append(torch.from_numpy(chunk)), progress)
        return _pixels(images, kept, shape, key, torch.cat(chunks), None)
    entry = folder / key[:32]
    if not _is_whole(entry, shape):
        _write_entry(entry, shape, plain, progress)
    kept = json.loads((entry / _INDEX).read_text())
    return _pixels(images, kept, shape, key, None, entry / _PIXELS)


def _pixels(
    images: ImageSet,
    kept: list[int],
    shape: tuple[int, int, int, int],
    key: str,
    memory: Tensor | None,
    path: Path | None,
) -> Pixels:
    labels = torch.tensor(images.labels)
    whole = (len(kept), *shape[1:])
    return Pixels(whole, labels[kept], len(images) - len(kept), _with_labels(key, images), memory, path)


def _with_labels(key: str, images: ImageSet) -> str:
    return hashlib.sha256(json.dumps([key, images.labels]).encode()).hexdigest()


def _decode(
    plain: ImageSet, take: Callable[[np.ndarray], object], progress: Callable[[int, int], None] | None
) -> list[int]:
    """Gives `take` uint8 (M, C, H, W) at a time; the positions of those that are whole."""
    position = {name: index for index, name in enumerate(plain.names)}
    kept: list[int] = []
    done = 0
    for batch in plain.batches(_CHUNK):
        # Preprocess has rounded to bytes before it scaled to 0..1.
        take((batch.pixels * 255).round().to(torch.uint8).numpy())
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
    """Decodes into a folder of this run's own; an entry that another run has made whole by then stays as it is."""
    with writing(entry, "--cache"):
        entry.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(entry)
        aside = Path(tempfile.mkdtemp(".partial", f".{entry.name}.", entry.parent))
        try:
            with (aside / _PIXELS).open("wb") as file:
                kept = _decode(plain, lambda chunk: file.write(chunk.tobytes()), progress)
            (aside / _INDEX).write_text(json.dumps(kept))
            if not _is_whole(entry, shape):
                entry.mkdir(exist_ok=True)
                # File by file, so that a run which reads here misses none; the index, which makes it whole, last.
                for name in (_PIXELS, _INDEX):
                    (aside / name).replace(entry / name)
        finally:
            shutil.rmtree(aside, ignore_errors=True)


def _remove_leftovers(entry: Path) -> None:
    """What a run that was killed had written of this entry; another run may still be at a younger one."""
    for one in entry.parent.glob(f".{entry.name}.*.partial"):
        if one.stat().st_mtime < time.time() - _DAY:
            shutil.rmtree(one, ignore_errors=True)

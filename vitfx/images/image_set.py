"""Images known by name and class: sampling, decoding in batches, fingerprints."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch

from vitfx.images.preprocess import Preprocess
from vitfx.images.sources import CorruptImageError, ImageSource
from vitfx.support.errors import UserError

# Images decoded and resized together while a whole set loads: enough to be fast, few enough to stay in cache.
_CHUNK = 256
# Values from which an image is resized at once: hundreds of photographs fill the memory.
_LARGE = 2**20


@dataclass(frozen=True, eq=False)
class Images:
    """Decoded images, ready for the model."""

    pixels: torch.Tensor  #: float32 (N, C, H, W), preprocessed
    #: int64 (N,); (N, K) with a 0 or 1 for each of several labels; or None where no classes are known
    labels: torch.Tensor | None
    names: tuple[str, ...]
    skipped: int = 0  #: corrupt images that were left out

    def __len__(self) -> int:
        return len(self.names)

    def subset(self, positions: torch.Tensor) -> Images:
        """Those at these positions, int64 (M,), in that order."""
        return replace(
            self,
            pixels=self.pixels[positions],
            labels=None if self.labels is None else self.labels[positions],
            names=tuple(self.names[position] for position in positions.tolist()),
        )


@dataclass(frozen=True, eq=False)
class ImageSet:
    """Images that are known by name and class and not decoded yet."""

    names: tuple[str, ...]
    sources: tuple[ImageSource, ...]
    #: positions among the classes; a 0 or 1 for each of several labels; or None where no classes are known
    labels: tuple[int | tuple[int, ...], ...] | None
    preprocess: Preprocess
    half: int | None = None  #: a label that half of a sample is of, however many other classes there are

    def __len__(self) -> int:
        return len(self.names)

    def __add__(self, other: ImageSet) -> ImageSet:
        """Both, with labels where both have some."""
        labels = None if self.labels is None or other.labels is None else self.labels + other.labels
        names, sources = self.names + other.names, self.sources + other.sources
        return replace(self, names=names, sources=sources, labels=labels)

    @property
    def has_labels(self) -> bool:
        return self.labels is not None

    def sample(self, count: int, seed: int) -> ImageSet:
        """`count` images without repetition, one of each class in turn while the class has any left.

        The order of classes and of the images in each comes from hashes of the seed and their names: the
        same on every machine, and the sample of 64 is the beginning of the sample of 128. Raises UserError.
        """
        if not 1 <= count <= len(self):
            raise UserError(f"can't sample {count} of {len(self)} images: ask for 1 to {len(self)}")
        by_class: defaultdict[int | tuple[int, ...], list[int]] = defaultdict(list)
        for index in hash_order(self.names, seed):
            by_class[self.labels[index] if self.labels is not None else 0].append(index)
        classes = sorted(by_class, key=lambda label: _digest(seed, f"class {label}"))
        # In a turn each class gives one image, and the half one for each of them.
        each = {label: max(1, len(classes) - 1) if label == self.half else 1 for label in classes}
        ranked = sorted(
            (turn // each[label], place, index)
            for place, label in enumerate(classes)
            for turn, index in enumerate(by_class[label])
        )
        return self.subset([index for _, _, index in ranked[:count]])

    def load(self, progress: Callable[[int, int], None] | None = None) -> Images:
        """All images, decoded. Corrupt ones are left out and counted; raises UserError where none is left.

        progress: called with how many images are done and how many there are
        """
        pixels = torch.empty(len(self), self.preprocess.channels, *self.preprocess.size)
        kept: list[int] = []
        for start in range(0, len(self), _CHUNK):
            stop = min(start + _CHUNK, len(self))
            chunk, whole = self._decode(range(start, stop))
            pixels[len(kept) : len(kept) + len(whole)] = chunk
            kept += whole
            if progress is not None:
                progress(stop, len(self))
        self._check_some(len(kept))
        return self._images(pixels[: len(kept)], kept, len(self) - len(kept))

    def batches(self, batch_size: int) -> Iterator[Images]:
        """All images, `batch_size` at a time; fewer where corrupt ones are left out.

        `skipped` of all batches adds up to that of the set. Raises UserError where no image is left.
        """
        pending: Images | None = None
        skipped = 0
        for start in range(0, len(self), batch_size):
            indices = range(start, min(start + batch_size, len(self)))
            pixels, whole = self._decode(indices)
            skipped += len(indices) - len(whole)
            # One batch is held back so that corrupt images at the end are counted in the last one.
            if whole:
                if pending is not None:
                    yield pending
                pending, skipped = self._images(pixels, whole, skipped), 0
        self._check_some(0 if pending is None else len(pending))
        if pending is not None:
            yield replace(pending, skipped=pending.skipped + skipped)

    def fingerprint(self) -> str:
        """sha256 in hexadecimal over names, labels, preprocessing and the images' undecoded bytes, in order."""
        settings = {"preprocess": self.preprocess.to_json(), "names": self.names, "labels": self.labels}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
        for source in self.sources:
            digest.update(hashlib.sha256(source.read()).digest())
        return digest.hexdigest()

    def subset(self, indices: Sequence[int]) -> ImageSet:
        """The images at these positions, in this order."""
        labels = None if self.labels is None else tuple(self.labels[index] for index in indices)
        names = tuple(self.names[index] for index in indices)
        return replace(self, names=names, sources=tuple(self.sources[index] for index in indices), labels=labels)

    def _images(self, pixels: torch.Tensor, indices: Sequence[int], skipped: int) -> Images:
        labels = None if self.labels is None else torch.tensor([self.labels[index] for index in indices])
        return Images(pixels, labels, tuple(self.names[index] for index in indices), skipped)

    def _decode(self, indices: Sequence[int]) -> tuple[torch.Tensor, list[int]]:
        """Preprocessed float32 (M, C, H, W) and the indices of the M images that were whole, in order."""
        whole: list[int] = []
        ready: dict[int, torch.Tensor] = {}
        by_shape: defaultdict[torch.Size, list[tuple[int, torch.Tensor]]] = defaultdict(list)
        for index in indices:
            try:
                image = self.sources[index].decode(self.preprocess.channels, self.preprocess.reader)
            except CorruptImageError:
                continue
            if image.numel() > _LARGE:
                ready[len(whole)] = self.preprocess(image)
            else:
                by_shape[image.shape].append((len(whole), image))
            whole.append(index)
        pixels = torch.empty(len(whole), self.preprocess.channels, *self.preprocess.size)
        for place, prepared in ready.items():
            pixels[place] = prepared
        # Resizing a batch gives the same values as resizing each image, many times faster.
        for same_shape in by_shape.values():
            places = [place for place, _ in same_shape]
            pixels[places] = self.preprocess(torch.stack([image for _, image in same_shape]))
        return pixels, whole

    def _check_some(self, whole: int) -> None:
        if not whole:
            raise UserError(f"all {len(self)} images are corrupt (first: {self.names[0]}): check the data")


def hash_order(names: Sequence[str], seed: int) -> list[int]:
    """A shuffle that depends on nothing but the seed and the names."""
    return sorted(range(len(names)), key=lambda index: _digest(seed, names[index]))


def _digest(seed: int, name: str) -> bytes:
    return hashlib.sha256(f"{seed}/{name}".encode(errors="surrogateescape")).digest()

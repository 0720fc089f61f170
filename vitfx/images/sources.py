"""Where images lie (files, members of tar files, arrays) and how they are decoded."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from pathlib import Path, PurePosixPath
from typing import Protocol

import numpy as np
import torch
from torchvision.transforms.v2 import functional as F

from vitfx.images.decoding import VITFX, decode
from vitfx.support.errors import UserError
from vitfx.support.reading import check_file

ENDINGS = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm",
    ".pnm",
)  # fmt: skip
ANNOTATIONS = "val_annotations.txt"
# What unpacking programs and file servers leave beside the images.
_SYSTEM = {"__macosx", "@eadir", "lost+found", "__pycache__", "$recycle.bin", "system volume information"}


def is_system(name: str) -> bool:
    """Whether a folder is the system's and no class."""
    return name.startswith(".") or name.casefold() in _SYSTEM


class CorruptImageError(Exception):
    """The bytes of an image do not decode to a whole one."""


class ImageSource(Protocol):
    """One image that has not been decoded yet."""

    def read(self) -> bytes:
        """The image's own bytes, undecoded: what fingerprints are made of."""

    def decode(self, channels: int, reader: str = VITFX) -> torch.Tensor:
        """uint8 (channels, H, W); raises CorruptImageError.

        reader: one of `vitfx.images.decoding.READERS`; images that are no files have no use for it
        """


@dataclass(frozen=True)
class StoredImage:
    """An image file, or the `size` bytes from `offset` on of an uncompressed tar file.

    The file is opened anew for each reading: that is safe in threads and forks, and costs microseconds.
    """

    path: Path
    offset: int = 0
    size: int = -1

    def read(self) -> bytes:
        check_file(self.path, "check the file")
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                return file.read(self.size)
        except OSError as reason:
            raise UserError(f"{self.path} can't be read ({reason.strerror}): check the file") from reason

    def decode(self, channels: int, reader: str = VITFX) -> torch.Tensor:
        """uint8 (channels, H, W) for channels 1 (grey) or 3 (RGB; transparency is dropped, as PIL does).

        Raises CorruptImageError, and UserError where the file itself can't be read.
        """
        data = self.read()
        try:
            return decode(data, channels, reader)
        # Decoders raise whatever a broken file makes them meet: OSError, SyntaxError, struct.error...
        except Exception as reason:
            raise CorruptImageError(f"{self.path}: {reason}") from reason


@dataclass(frozen=True, eq=False)
class ArrayImage:
    """An image that is in memory: uint8 (C, H, W)."""

    pixels: np.ndarray

    def read(self) -> bytes:
        return self.pixels.tobytes()

    def decode(self, channels: int, reader: str = VITFX) -> torch.Tensor:
        """uint8 (channels, H, W): grey is repeated, RGB weighted to grey, a fourth channel dropped for 3."""
        image = torch.from_numpy(np.ascontiguousarray(self.pixels))
        if image.shape[0] == channels:
            return image
        if image.shape[0] == 1:
            return image.expand(channels, -1, -1)
        return F.rgb_to_grayscale(image[:3]) if channels == 1 else image[:channels]


@dataclass(frozen=True)
class Listing:
    """Images by their path below a folder, sorted, and Tiny ImageNet's `val_annotations.txt` where it is."""

    images: dict[str, StoredImage]
    annotations: StoredImage | None = None
    folders: frozenset[str] = frozenset()  #: the names of the topmost folders, with images or without

    @staticmethod
    def of(files: Iterable[tuple[str, StoredImage]], folders: Iterable[str] = ()) -> Listing:
        # Names that start with a dot are the system's, such as macOS's "._photo.jpg".
        seen = {path: file for path, file in files if "/." not in f"/{path}"}
        images = {path: seen[path] for path in sorted(seen) if PurePosixPath(path).suffix.lower() in ENDINGS}
        topmost = {*folders, *(path.split("/")[0] for path in images if "/" in path)}
        return Listing(images, seen.get(ANNOTATIONS), frozenset(name for name in topmost if not is_system(name)))


class FolderReader:
    """Lists folders so that each real folder and each real image is taken once, whatever links lead to it.

    What really lies in the folders goes before what links lead to; of several links, the one nearest to the top counts,
    then the first by name.
    """

    left_out: list[Path]  #: links to what is taken elsewhere, to themselves, or to folders that they are in

    def __init__(self, folders: Sequence[Path]) -> None:
        self.left_out = []
        self._roots = [Path(os.path.realpath(folder)) for folder in folders]
        self._taken: set[tuple[int, int]] = set()
        self._files: dict[Path, dict[str, StoredImage]] = {folder: {} for folder in folders}
        self._folders: dict[Path, set[str]] = {folder: set() for folder in folders}
        self._links: list[tuple[int, str, Path]] = []
        for folder in folders:
            self._walk(folder, folder)
        while self._links:
            _, link, folder = heappop(self._links)
            self._follow(folder, Path(link))

    def listing(self, folder: Path) -> Listing:
        """All images below one of the folders."""
        # A folder that holds nothing but such links is as if it were not there.
        links = {link.relative_to(folder).parts[0] for link in self.left_out if folder in link.parents}
        return Listing.of(self._files[folder].items(), self._folders[folder] - links)

    def _walk(self, folder: Path, start: Path) -> None:
        for parent, folders, files in os.walk(start):
            # Names that start with a dot are the system's.
            folders[:] = sorted(name for name in folders if not is_system(name))
            if not self._take(Path(parent).stat()):
                self.left_out.append(Path(parent))
                folders.clear()
                continue
            if Path(parent) == folder:
                self._folders[folder].update(folders)
            images = [name for name in files if not name.startswith(".") and name.lower().endswith(ENDINGS)]
            for name in folders + images:
                path = Path(parent, name)
                status = path.lstat()
                if stat.S_ISLNK(status.st_mode):
                    heappush(self._links, (len(path.parts), str(path), folder))
                elif name not in folders:
                    self._take(status)
                    self._add(folder, path)
            if ANNOTATIONS in files:
                self._add(folder, Path(parent, ANNOTATIONS))

    def _follow(self, folder: Path, link: Path) -> None:
        # Path.resolve raises where a link leads to itself.
        real, place = Path(os.path.realpath(link)), Path(os.path.realpath(link.parent))
        if link.is_dir() and not any(root.is_relative_to(real) for root in (*self._roots, place)):
            self._walk(folder, link)
        elif link.is_dir() or real == place / link.name or (link.exists() and not self._take(link.stat())):
            self.left_out.append(link)
        else:
            # Where it leads nowhere, reading the image says so.
            self._add(folder, link)

    def _take(self, status: os.stat_result) -> bool:
        """Whether this folder or file was not taken before."""
        identity = (status.st_dev, status.st_ino)
        new = identity not in self._taken
        self._taken.add(identity)
        return new

    def _add(self, folder: Path, path: Path) -> None:
        self._files[folder][path.relative_to(folder).as_posix()] = StoredImage(path)


def list_tars(paths: Iterable[Path], part: str) -> Listing:
    """All images in tar files; their paths are taken below the folder `part`, where the tar has one.

    Raises UserError for what is not an uncompressed tar file: only there can members be read in place.
    """
    files: dict[str, StoredImage] = {}
    folders: list[PurePosixPath] = []
    for path in paths:
        try:
            with tarfile.open(path, "r:") as tar:
                for member in tar:
                    if member.isreg():
                        stored = StoredImage(path, member.offset_data, member.size)
                        files[_below(PurePosixPath(member.name), part)] = stored
                    elif member.isdir():
                        folders.append(PurePosixPath(member.name, "_"))
                # tarfile takes a file that was cut in a header for one that ends there.
                if StoredImage(path, tar.offset, tarfile.BLOCKSIZE).read() != bytes(tarfile.BLOCKSIZE):
                    raise tarfile.ReadError("its end is missing")
        except (tarfile.TarError, OSError) as reason:
            raise UserError(
                f"{path} is not a whole, uncompressed tar file ({reason}): unpack it or copy it again"
            ) from reason
    inside = [folder for folder in folders if part in folder.parts] or folders
    below = [_below(folder, part) for folder in inside]
    return Listing.of(files.items(), (name.split("/")[0] for name in below if "/" in name))


def _below(path: PurePosixPath, part: str) -> str:
    folders = path.parts[:-1]
    start = folders.index(part) + 1 if part in folders else 0
    return PurePosixPath(*path.parts[start:]).as_posix()

"""From an image file's bytes to pixels, as the library that a model comes from decodes them."""

from __future__ import annotations

import io
import zlib

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional as F

VITFX, PIL, UPRIGHT = "vitfx", "PIL", "PIL-upright"
READERS = (VITFX, PIL, UPRIGHT)
"""vitfx: 16 bits are scaled to 8. PIL: what `Image.convert` makes of the file, as torchvision's ImageFolder and timm
read it: more than 8 bits are cut off at 255. PIL-upright: the same, turned as the camera was held, as transformers'
`load_image` does. All drop transparency."""
_JPEG, _PNG = b"\xff\xd8\xff", b"\x89PNG"
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def decode(data: bytes, channels: int, reader: str) -> Tensor:
    """uint8 (channels, H, W) for channels 1 (grey) or 3 (RGB). Broken files raise errors of any class."""
    # torchvision is twice as fast as PIL, gives nearly the same pixels and is as strict with truncated files,
    # but it reads neither BMP nor TIFF and gives animations a fourth axis.
    if reader == VITFX and data.startswith((_JPEG, _PNG)):
        if data.startswith(_PNG):
            _check_png(data)
        mode = ImageReadMode.GRAY if channels == 1 else ImageReadMode.RGB
        image = decode_image(torch.frombuffer(bytearray(data), dtype=torch.uint8), mode)
        # 16-bit PNGs come as uint16.
        pixels: Tensor = F.to_dtype(image, torch.uint8, scale=True)
        return pixels
    with Image.open(io.BytesIO(data)) as file:
        upright = ImageOps.exif_transpose(file) if reader == UPRIGHT else file
        decoded: Tensor = F.pil_to_tensor(upright.convert("L" if channels == 1 else "RGB"))
        return decoded


def _check_png(data: bytes) -> None:
    """Raises ValueError where what a PNG can't be decoded without does not match its checksums, or has no end: where
    libpng finds that out while it decodes, torchvision's decoder can end the process (SIGSEGV)."""
    place, kind = len(_SIGNATURE), b""
    while kind != b"IEND":
        length, kind = int.from_bytes(data[place : place + 4], "big"), data[place + 4 : place + 8]
        end = place + 8 + length
        checksum = data[end : end + 4]
        if len(checksum) < 4:
            raise ValueError("the PNG is cut short")
        # Of what need not be understood, its name in small letters, libpng leaves out what is damaged.
        if kind[:1].isupper() and zlib.crc32(data[place + 4 : end]) != int.from_bytes(checksum, "big"):
            raise ValueError(f"the {kind.decode(errors='replace')} of the PNG does not match its checksum")
        place = end + 4

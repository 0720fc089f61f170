"""Decoding: the formats, modes and kinds of damage."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from tests.support.image_files import damaged, picture, put
from vitfx.images.preprocess import Preprocess
from vitfx.images.sources import StoredImage
from vitfx.images.splits import open_data

# No resizing, no scaling but to 0..1: what comes out is what was decoded.
PLAIN = Preprocess((12, 10), mean=(0.0,) * 3, std=(1.0,) * 3)
MODES = {
    "png": ("RGB", "L", "LA", "RGBA", "P", "1"),
    "jpg": ("RGB", "L", "CMYK"),
    "webp": ("RGB", "RGBA"),
    "gif": ("P", "L"),
    "tif": ("RGB", "RGBA", "CMYK"),
    "bmp": ("RGB", "L"),
    "pgm": ("L",),
}


def encoded(kind: str) -> bytes:
    buffer = io.BytesIO()
    picture(0, size=(40, 40)).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF"])
def test_truncated_images_are_skipped_and_counted(tmp_path: Path, kind: str) -> None:
    whole = encoded(kind)
    (tmp_path / "whole").write_bytes(whole)
    assert StoredImage(tmp_path / "whole").decode(3).shape == (3, 40, 40)
    images = damaged(tmp_path, 3, [whole[: len(whole) * 2 // 3], b"text", b""])
    loaded = images.load()
    assert loaded.skipped == 6 and loaded.labels is not None
    assert loaded.names == tuple(f"train/a/{index}.png" for index in range(3))
    assert len(loaded.pixels) == len(loaded.labels) == 3


@pytest.mark.parametrize("ending, mode", [(ending, mode) for ending, modes in MODES.items() for mode in modes])
def test_modes_decode_as_pil_does(tmp_path: Path, ending: str, mode: str) -> None:
    for index in range(2):
        put(tmp_path / f"{index}.{ending}", index, mode)
    images = open_data(str(tmp_path), PLAIN).calibration
    with Image.open(tmp_path / images.names[0]) as image:
        rgb, grey = (F.pil_to_tensor(image.convert(wanted)) for wanted in ("RGB", "L"))
    assert torch.equal((images.load().pixels[0] * 255).round().to(torch.uint8), rgb)
    # Rounding differs by one; a JPEG's own luma differs from PIL's where RGB was clipped, in few pixels.
    unlike = (images.sources[0].decode(1).int() - grey.int()).abs() > 1
    assert unlike.float().mean() < (0.1 if ending == "jpg" else 1e-9)


def test_sixteen_bit_png(tmp_path: Path) -> None:
    values = np.arange(120, dtype=np.uint16).reshape(12, 10) * 500
    for index in range(2):
        Image.fromarray(values).save(tmp_path / f"{index}.png")
    pixels = open_data(str(tmp_path), PLAIN).calibration.load().pixels
    assert np.abs(pixels[0, 0].numpy() - values / 65535).max() < 1 / 255

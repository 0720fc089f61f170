"""Image files of every shape, mode and format that people have."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

#: name -> (width, height), mode, file ending
KINDS = {
    "wide": ((97, 31), "RGB", "png"),
    "tall": ((20, 83), "RGB", "jpg"),
    "square": ((50, 50), "RGB", "bmp"),
    "tiny": ((3, 5), "RGB", "png"),
    "one pixel": ((1, 1), "RGB", "png"),
    "grey": ((61, 40), "L", "png"),
    "grey JPEG": ((61, 40), "L", "jpg"),
    "black and white": ((44, 70), "1", "png"),
    "CMYK": ((52, 45), "CMYK", "jpg"),
    "CMYK TIFF": ((45, 52), "CMYK", "tif"),
    "alpha": ((60, 47), "RGBA", "png"),
    "alpha WebP": ((60, 47), "RGBA", "webp"),
    "grey alpha": ((33, 60), "LA", "png"),
    "palette": ((66, 41), "P", "png"),
    "palette with a transparent colour": ((66, 41), "P+", "png"),
    "GIF": ((40, 66), "P", "gif"),
    "16 bits": ((58, 44), "I;16", "png"),
    "16 bits TIFF": ((58, 44), "I;16", "tif"),
    "16 bits PGM": ((44, 58), "I;16", "pgm"),
    "float TIFF": ((49, 55), "F", "tif"),
    "float TIFF of 0 to 1": ((49, 55), "F1", "tif"),
    "PGM": ((39, 64), "L", "pgm"),
    "PPM": ((64, 39), "RGB", "ppm"),
    "JFIF": ((71, 43), "RGB", "jfif"),
    "turned camera": ((72, 40), "RGB+", "jpg"),
}


def make_kind(kind: str) -> Image.Image:
    (width, height), mode, _ = KINDS[kind]
    rng = np.random.default_rng(list(KINDS).index(kind))
    rows, columns = np.mgrid[0:height, 0:width]
    waves = 127 + 100 * np.sin(rows[..., None] / (3, 7, 11) + columns[..., None] / (13, 5, 9))
    pixels = np.clip(waves + rng.normal(0, 12, (height, width, 3)), 0, 255)
    if mode == "I;16":
        return Image.fromarray((pixels[..., 0] * 3).astype(np.uint16))
    if mode.startswith("F"):
        return Image.fromarray((pixels[..., 1] / (255 if mode == "F1" else 1)).astype(np.float32))
    image = Image.fromarray(pixels.astype(np.uint8))
    if mode in ("RGBA", "LA"):
        image.putalpha(Image.fromarray(pixels[..., 2].astype(np.uint8)))
    return image.convert(mode.rstrip("+"))


def save_kind(folder: Path, kind: str) -> Path:
    """Writes the image of this kind and returns its path."""
    _, mode, ending = KINDS[kind]
    path = folder / f"{kind}.{ending}"
    more: dict[str, object] = {}
    if mode == "P+":
        more["transparency"] = 3
    if mode == "RGB+":
        exif = Image.Exif()
        exif[0x0112] = 6
        more["exif"] = exif
    make_kind(kind).save(path, {"jfif": "JPEG", "pgm": "PPM"}.get(ending), **more)
    return path

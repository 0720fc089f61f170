"""vitfx.images.decoding: a damaged image is an error, whatever its decoder would make of it."""

from __future__ import annotations

import io
import zlib

import pytest

from tests.support.image_files import picture
from vitfx.images.decoding import VITFX, decode


def png() -> bytes:
    file = io.BytesIO()
    picture(0).save(file, "PNG")
    return file.getvalue()


def with_chunk(data: bytes, kind: bytes, *, checksum: int) -> bytes:
    """Behind the header."""
    chunk = (4).to_bytes(4, "big") + kind + b"abcd" + checksum.to_bytes(4, "big")
    return data[:33] + chunk + data[33:]


@pytest.mark.parametrize("place", range(16, 440, 6))
def test_a_damaged_png_does_not_reach_the_decoder(place: int) -> None:
    """Which torchvision's would end the process for, at some of these places."""
    damaged = bytearray(png())
    damaged[place] ^= 0x55
    with pytest.raises(ValueError, match=r"does not match its checksum|is cut short"):
        decode(bytes(damaged), 3, VITFX)


@pytest.mark.parametrize("length", [8, 20, 100, 420])
def test_a_png_without_an_end(length: int) -> None:
    with pytest.raises(ValueError, match="the PNG is cut short"):
        decode(png()[:length], 3, VITFX)


def test_what_need_not_be_understood_may_be_damaged() -> None:
    """As libpng has it; and what is behind the end does not count."""
    for data in (
        png() + b"more",
        with_chunk(png(), b"teSt", checksum=0),
        with_chunk(png(), b"teSt", checksum=zlib.crc32(b"teStabcd")),
    ):
        assert decode(data, 3, VITFX).equal(decode(png(), 3, VITFX))

"""What can be wrong with a file: bits and blocks, values of JSON, members of archives, records of torch.save."""

from __future__ import annotations

import copy
import io
import json
import os
import pickle
import random
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from vitfx.models.record import sealed
from vitfx.support.digests import DIGEST, digest_of

VALUES: list[Any] = [
    None, True, False, 0, 1, -1, 7, 2.5, 1e308, float("nan"), float("inf"), 10**400, 2**63, "", "x", "1", "false",
    "\udc80", "a\nb", [], [[]], [1], ["a", 2], [None], {}, {"a": 1}, {"type": "Graph"}, "x" * 5000,
]  # fmt: skip
DEPTH = 100_000
STRANGE: list[bytes] = [
    b"", b"\0", b"null", b"[]", b"{}", b"NaN", b"1" * 5000, b"\xff\xfe" + b"\0" * 64, b"[" * DEPTH, b'{"a":' * DEPTH,
    b"[" * DEPTH + b"]" * DEPTH, b"a = " + b"[" * DEPTH, b"PK\x05\x06" + b"\0" * 18, b"\x80\x02}q\0.", b"a\n" * DEPTH,
]  # fmt: skip
Steps = tuple[Any, ...]


class Code:
    """A pickle of it makes the folder `vitfx-ran` where it is read."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("vitfx-ran",)


def tensors() -> list[Any]:
    """Of kinds that weights are not."""
    return [
        torch.zeros(()), torch.zeros(2), torch.zeros(0), torch.zeros(1).expand(10**11), torch.zeros(2, 2).to_sparse(),
        torch.zeros(1, dtype=torch.complex64), torch.zeros(2, 2, dtype=torch.bool), torch.zeros(3, dtype=torch.int8),
        torch.full((4, 4), float("nan")), torch.zeros(2, device="meta"), torch.zeros(2, dtype=torch.bfloat16),
        torch.quantize_per_tensor(torch.zeros(2), 0.1, 0, torch.quint8),
    ]  # fmt: skip


def mutate(path: Path, rng: random.Random) -> tuple[str, bool]:
    """Changes the file; says how, and whether whoever did it knew nothing of digests and checksums."""
    kind = rng.choice(("bytes", "bytes", "strange", *_structured(path)))
    if kind == "bytes":
        path.write_bytes(_bytes(path.read_bytes(), rng))
        return kind, True
    if kind == "strange":
        return _strange(path, rng), False
    path.write_bytes(_BY_KIND[kind](path.read_bytes(), rng))
    return kind, False


def _structured(path: Path) -> tuple[str, ...]:
    """What else this kind of file can suffer, as often as blind damage."""
    data = path.read_bytes()
    if path.suffix == ".journal":
        return ("lines", "lines", "lines")
    if path.suffix == ".json":
        return ("json",) * 3
    if path.suffix in (".pt", ".pth"):
        return ("record", "record", "record", "zip")
    if data.startswith(b"PK"):
        return ("zip",) * 3
    if path.suffix == ".safetensors":
        return ("header",) * 3
    return ("text",) * 2 if path.suffix in (".toml", ".csv", ".txt") else ()


def _bytes(data: bytes, rng: random.Random) -> bytes:
    """Flipped bits, a cut, or a block that is lost, doubled, filled with one byte or put elsewhere."""
    changed, size = bytearray(data), max(1, len(data))
    at, length = rng.randrange(size), rng.choice((1, 2, 4, 8, 64, 512))
    block = bytes(changed[at : at + length])
    kind = rng.choice(("flip", "flip", "cut", "lose", "double", "fill", "noise", "move"))
    if kind == "flip":
        for _ in range(rng.choice((1, 1, 2, 8))):
            changed[rng.randrange(size) % max(1, len(changed))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del changed[at:]
    elif kind == "lose":
        del changed[at : at + length]
    elif kind == "double":
        changed[at:at] = block * rng.choice((1, 3))
    elif kind == "fill":
        changed[at : at + length] = bytes([rng.choice((0, 0x20, 0x7F, 0xFF))]) * len(block)
    elif kind == "noise":
        changed[at : at + length] = rng.randbytes(len(block))
    else:
        other = rng.randrange(size)
        changed[other : other + length] = block
    return bytes(changed)


def _strange(path: Path, rng: random.Random) -> str:
    """Another thing by the file's name."""
    kind = rng.choice(("contents", "contents", "contents", "code", "folder", "pipe", "zeros", "nowhere"))
    path.unlink()
    if kind == "contents":
        path.write_bytes(rng.choice(STRANGE))
    elif kind == "code":
        torch.save(Code(), path) if rng.random() < 0.5 else path.write_bytes(pickle.dumps(Code()))
    elif kind == "folder":
        path.mkdir()
    elif kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to("/dev/zero" if kind == "zeros" else path.with_name("absent"))
    return kind


def _json(data: bytes, rng: random.Random) -> bytes:
    """A value of another type, or a key that is missing; with the digest that this has."""
    record = _changed(json.loads(data), rng, VALUES)
    if isinstance(record, dict) and DIGEST in record and rng.random() < 0.8:
        record[DIGEST] = digest_of(record)
    return json.dumps(record).encode(errors="surrogatepass")


def _lines(data: bytes, rng: random.Random) -> bytes:
    """A line of JSON that is changed, lost, doubled or put elsewhere."""
    lines = data.splitlines(keepends=True)
    at = rng.randrange(len(lines))
    kind = rng.choice(("change", "change", "change", "lose", "double", "move"))
    if kind == "change":
        lines[at] = _json(lines[at], rng) + b"\n"
    elif kind == "double":
        lines.insert(at, lines[at])
    else:
        line = lines.pop(at)
        lines[rng.randrange(len(lines) + 1) :][:0] = [line] if kind == "move" else []
    return b"".join(lines)


def _text(data: bytes, rng: random.Random) -> bytes:
    """A word of the text that is another one."""
    words = data.split(b" ")
    odd = [str(value).encode(errors="surrogatepass") for value in VALUES if value != "x" * 5000]
    words[rng.randrange(len(words))] = rng.choice(odd)
    return b" ".join(words)


def _header(data: bytes, rng: random.Random) -> bytes:
    """Of safetensors."""
    length = int.from_bytes(data[:8], "little")
    header = json.dumps(_changed(json.loads(data[8 : 8 + length]), rng, VALUES)).encode(errors="surrogatepass")
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


def _zip(data: bytes, rng: random.Random) -> bytes:
    """A member that is changed, lost, doubled or renamed; its checksum is right."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(name, archive.read(name)) for name in archive.namelist()]
    at = rng.randrange(len(members))
    name, contents = members[at]
    kind = rng.choice(("change", "change", "change", "lose", "double", "rename"))
    if kind == "change":
        is_json = contents[:1] in (b"{", b"[")
        members[at] = (name, _json(contents, rng) if is_json and rng.random() < 0.7 else _bytes(contents, rng))
    elif kind == "lose":
        del members[at]
    elif kind == "double":
        members.insert(at, (name, contents))
    else:
        members[at] = (rng.choice(("../" + name, "/" + name, "x", name + "x")), contents)
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, contents in members:
            archive.writestr(name, contents)
    return out.getvalue()


def _record(data: bytes, rng: random.Random) -> bytes:
    """A value of another type in what torch.save wrote, with the digest that this has."""
    record = torch.load(io.BytesIO(data), weights_only=True)
    strange = [*VALUES, (), {1: 2}, *tensors()]
    changed = _changed(record, rng, strange)
    if isinstance(record, dict) and DIGEST in record and isinstance(changed, dict):
        try:
            changed = sealed({name: value for name, value in changed.items() if name != DIGEST})
        except Exception:  # What can't be sealed keeps the digest that it had.
            changed.setdefault(DIGEST, record[DIGEST])
    out = io.BytesIO()
    torch.save(changed, out)
    return out.getvalue()


_BY_KIND: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "json": _json, "lines": _lines, "text": _text, "header": _header, "zip": _zip, "record": _record,
}  # fmt: skip


def _changed(value: Any, rng: random.Random, values: list[Any]) -> Any:
    """A copy with one part, at any depth, replaced or left out."""
    steps = rng.choice(list(_places(value)))
    new = copy.copy(rng.choice(values))
    return _replaced(value, steps, new, lost=bool(steps) and rng.random() < 0.15)


def _places(value: Any, steps: Steps = ()) -> Iterator[Steps]:
    """The way to every part, the whole first; of long lists to the first few and the last."""
    yield steps
    if isinstance(value, dict):
        parts = list(value.items())
    else:
        parts = list(enumerate(value)) if isinstance(value, list | tuple) else []
    for key, part in parts if len(parts) < 40 else (*parts[:8], *parts[-2:]):
        yield from _places(part, (*steps, key))


def _replaced(value: Any, steps: Steps, new: Any, *, lost: bool) -> Any:
    if not steps:
        return new
    changed: Any = list(value) if isinstance(value, list | tuple) else dict(value)
    if len(steps) == 1 and lost:
        del changed[steps[0]]
    else:
        changed[steps[0]] = _replaced(value[steps[0]], steps[1:], new, lost=lost)
    return changed

"""ONNX files that prove themselves: what one says of itself, and whether it is as it was written."""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from vitfx.support.digests import DIGEST
from vitfx.support.errors import UserError, in_a_line
from vitfx.support.reading import check_file

_HEX = 2 * hashlib.sha256().digest_size
"""Letters of a digest."""
_SHOWN = 400
"""Letters of a value in the metadata that are shown, as a list of a thousand classes is not."""


def seal(model: onnx.ModelProto) -> None:
    """Writes a digest of the whole model, weights included, into its metadata."""
    _take_digest(model)
    model.metadata_props.add(key=DIGEST, value=_digest(model))


def read_onnx(path: Path) -> onnx.ModelProto:
    """The model of a file. Raises UserError where it is not ONNX, or has a digest that it does not match."""
    try:
        check_file(path, "give an ONNX file")
        model = onnx.load(path)
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}): give an ONNX file") from error
    except (DecodeError, ValueError) as error:
        raise UserError(f"{path} is not a whole ONNX file ({in_a_line(error)}): copy it again") from error
    written = _take_digest(model)
    if _is_misnamed(model) if written is None else written != _digest(model):
        raise UserError(f"{path} does not match its digest, so it was damaged or edited: copy it again, or export anew")
    if written is not None:
        model.metadata_props.add(key=DIGEST, value=written)
    return model


def describe(model: onnx.ModelProto) -> str:
    """What it computes with, its size, what it says of itself, and whether that is proved."""
    operators = Counter(node.op_type for node in model.graph.node)
    weights = sum(len(value.raw_data) for value in model.graph.initializer)
    opsets = ", ".join(f"{entry.domain or 'ONNX'} {entry.version}" for entry in model.opset_import)
    metadata = _metadata(model)
    proved = "matches its digest" if DIGEST in metadata else "has no digest, so nothing proves that it is whole"
    return "\n".join(
        [
            f"{len(model.graph.node)} nodes, {weights / 1e6:.1f} MB of weights, operators of {opsets}",
            f"the file {proved}",
            ", ".join(f"{count} {name}" for name, count in operators.most_common()),
            *(f"{name}: {_short(value)}" for name, value in metadata.items()),
        ]
    )


def _short(value: str) -> str:
    return value if len(value) <= _SHOWN else f"{value[:_SHOWN]} …"


def _metadata(model: onnx.ModelProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in model.metadata_props}


def _digest(model: onnx.ModelProto) -> str:
    """sha256 of a model whose metadata have no digest: taking it out spares a copy of all weights."""
    return hashlib.sha256(model.SerializeToString(deterministic=True)).hexdigest()


def _is_misnamed(model: onnx.ModelProto) -> bool:
    """Whether a digest of the whole model is there under another name, which must have been damaged."""
    for index, entry in enumerate(model.metadata_props):
        if len(entry.value) == _HEX:
            rest = onnx.ModelProto()
            rest.CopyFrom(model)
            del rest.metadata_props[index]
            if _digest(rest) == entry.value:
                return True
    return False


def _take_digest(model: onnx.ModelProto) -> str | None:
    """Removes the digest from the metadata and returns it, None where there is none."""
    digest = _metadata(model).get(DIGEST)
    others = [entry for entry in model.metadata_props if entry.key != DIGEST]
    del model.metadata_props[:]
    model.metadata_props.extend(others)
    return digest

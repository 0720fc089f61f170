"""Circuits from files: what can't be used is named."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.circuits import made_up
from vitfx.circuits.circuit import Circuit, read_circuit
from vitfx.support.errors import UserError


def test_a_circuit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "circuit.json"
    path.write_text(made_up("head").to_json())
    assert read_circuit(path) == made_up("head")


@pytest.mark.parametrize(
    ("contents", "sentence"),
    [
        (b'{"format": "vitfx-circuit/1"}', "format 'vitfx-circuit/1' is not vitfx-circuit/2: give"),
        (b"{", "the circuit can't be read: JSONDecodeError("),
        (b"\xff\xfe\x00", "is not text ("),
        (Circuit((), 0.0).to_json().encode(), "has no edges: give"),
    ],
)
def test_an_error_names_the_file(contents: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "circuit.json"
    path.write_bytes(contents)
    with pytest.raises(UserError) as caught:
        read_circuit(path)
    assert str(caught.value).startswith(str(path))
    assert sentence in str(caught.value)

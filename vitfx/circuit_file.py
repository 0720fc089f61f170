"""Circuits that users give as files."""

from __future__ import annotations

from pathlib import Path

from vitfx.circuits.circuit import Circuit
from vitfx.support.errors import UserError


def read_circuit(path: Path) -> Circuit:
    """Raises UserError for anything but a circuit with edges."""
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} can't be read ({error.strerror}): give a circuit.json that vitfx wrote") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not text: give a circuit.json that vitfx wrote") from error
    try:
        circuit = Circuit.from_json(text)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    if not circuit.decisions:
        raise UserError(f"{path} has no edges: give a circuit of a whole run")
    return circuit

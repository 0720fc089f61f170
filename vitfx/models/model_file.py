"""Model files: opened without running code that stands in them, written whole or not at all."""

from __future__ import annotations

import io
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vitfx.support.errors import UserError
from vitfx.support.files import write_aside


def read_model_file(path: Path, *, trust_pickle: bool) -> Any:
    """What `torch.save` or safetensors wrote at `path`, on the CPU.

    Everything is read with weights_only=True. A file with pickled code in it is read only where `trust_pickle` is
    set, as unpickling runs that code.

    Raises UserError for a file that is cut short, that is no model file, or that holds code.
    """
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    members = zip_members(path)
    if any("/code/" in member for member in members):
        raise UserError(
            f"{path} is a TorchScript archive, which holds no modules that can be pruned: "
            "save the original model's state_dict instead"
        )
    try:
        with warnings.catch_warnings():
            # torch warns of pickles from elsewhere before it refuses them.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        code = re.search(r"GLOBAL ([\w.]+)", str(error))
        if not code:
            raise _unreadable(path) from error
        return _read_with_code(path, code[1], trust_pickle)
    except PermissionError as error:
        raise UserError(f"{path} may not be read: check its permissions") from error
    except Exception as error:  # A broken pickle raises whatever its bytes happen to mean.
        raise _unreadable(path) from error


def zip_members(path: Path) -> tuple[str, ...]:
    """The names in a zip file, none where `path` is no zip file."""
    if not zipfile.is_zipfile(path):
        return ()
    with zipfile.ZipFile(path) as archive:
        return tuple(archive.namelist())


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a whole safetensors file ({error}): copy or download it again") from error


def _read_with_code(path: Path, code: str, trust_pickle: bool) -> Any:
    if not trust_pickle:
        raise UserError(
            f"{path} holds pickled code ({code}), and unpickling would run whatever stands in it: "
            "save the state_dict instead, or pass --trust-pickle if you trust where the file comes from"
        )
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # The file's own code runs here and may raise anything.
        raise UserError(
            f"{path} cannot be unpickled ({type(error).__name__}: {error}): its classes must be importable"
        ) from error


def _unreadable(path: Path) -> UserError:
    return UserError(f"{path} is cut short or no model file: give a whole file written by torch.save or safetensors")


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """What `read_model_file` reads: the same record gives the same bytes, whole or not at all. Raises WriteError."""
    # Through memory: torch.save writes the name of the file into it, and the name aside is another one.
    buffer = io.BytesIO()
    torch.save(dict(record), buffer)
    write_aside(path, buffer.getvalue())

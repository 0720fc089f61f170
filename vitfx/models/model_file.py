"""Model files: read without running any code in them, written whole or not at all."""

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

from vitfx.support.errors import UserError, in_a_line
from vitfx.support.files import write_aside


def read_model_file(path: Path, *, trust_pickle: bool) -> Any:
    """What `torch.save` or safetensors wrote at `path`, on the CPU.

    Everything is read with weights_only=True. A file with pickled code in it is read only where `trust_pickle` is
    set, as unpickling runs that code.

    Raises UserError for a file that is cut short, that is no model file, or that holds code.
    """
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if any("/code/" in member for member in zip_members(path)):
        raise UserError(
            f"{path} is a TorchScript archive, which holds no modules that can be pruned: "
            "save the original model's state_dict instead"
        )
    try:
        with warnings.catch_warnings():
            # torch warns of foreign pickles before it refuses them.
            warnings.simplefilter("ignore", UserWarning)
            return torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise UserError(f"{path} can't be read: check its permissions") from error
    except Exception as error:  # A broken pickle raises whatever its bytes happen to mean.
        code = pickled_code(error)
        if trust_pickle and isinstance(error, pickle.UnpicklingError):
            return _read_with_code(path)
        if code is not None:
            raise UserError(
                f"{path} holds pickled code ({code}), which would run when it is unpickled: "
                "save the state_dict instead, or pass --trust-pickle if you trust where the file comes from"
            ) from error
        raise UserError(
            f"{path} is cut short or no model file, or it holds pickled code: "
            "give a whole file of tensors written by torch.save or safetensors"
        ) from error


def pickled_code(error: Exception) -> str | None:
    """The function or class for which torch refused a pickle, where its message names one.

    Only the message does, so None says nothing about the file.
    """
    named = re.search(r"GLOBAL ([\w.]+)", str(error)) if isinstance(error, pickle.UnpicklingError) else None
    return named and named[1]


def zip_members(path: Path) -> tuple[str, ...]:
    """The names in a zip file, none where `path` is no whole zip file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return tuple(archive.namelist())
    except (OSError, ValueError, NotImplementedError, zipfile.BadZipFile):
        return ()


def _read_safetensors(path: Path) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except Exception as error:  # What its header may hold wrongly is for safetensors to say.
        raise UserError(
            f"{path} is not a whole safetensors file ({in_a_line(error)}): copy or download it again"
        ) from error


def _read_with_code(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except Exception as error:  # The file's own code runs here and may raise anything.
        raise UserError(
            f"{path} cannot be unpickled ({type(error).__name__}: {in_a_line(error)}): "
            "give a whole file, whose classes can be imported here"
        ) from error


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """What `read_model_file` reads: the same record gives the same bytes, whole or not at all. Raises WriteError."""
    # Through memory: torch.save writes the name of the file into it, and the name aside is another one.
    buffer = io.BytesIO()
    torch.save(dict(record), buffer)
    write_aside(path, buffer.getvalue())

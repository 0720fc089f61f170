"""Model files: read without running any code in them, written whole or not at all."""

from __future__ import annotations

import io
import pickle
import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

import torch

from vitfx.models.inert import PickledCodeError, pickled_code, read_without_code
from vitfx.support.digests import DamagedError, check_zip
from vitfx.support.errors import UserError, in_a_line
from vitfx.support.files import write_aside
from vitfx.support.reading import check_file, read_json_value
from vitfx.support.typed import TypeMismatch, typed

# The order in which transformers and timm look for weights in a folder.
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


class _Index(TypedDict):
    weight_map: dict[str, str]


class _TrainerState(TypedDict):
    best_model_checkpoint: str


def read_model_file(path: Path, *, trust_pickle: bool) -> Any:
    """What `torch.save` or safetensors wrote at `path`, on the CPU.

    Everything is read with weights_only=True. Objects beside the weights become inert stand-ins, see
    `vitfx.models.inert`; a pickled module is read only where `trust_pickle` is set, as unpickling runs its code.

    Raises UserError for a file that is cut short, that is no model file, or whose weights lie in pickled objects.
    """
    if path.name.endswith(".index.json"):
        return _read_shards(path, trust_pickle=trust_pickle)
    if (shard := re.search(r"-0*(\d+)-of-0*(\d+)\.(safetensors|bin)$", path.name)) and shard[2] != "1":
        raise UserError(f"{path} is one of {shard[2]} parts of a model: give its folder or its .index.json file")
    return _read_whole(path, trust_pickle=trust_pickle)


def _read_whole(path: Path, *, trust_pickle: bool) -> Any:
    check_file(path, "give a model file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    check_whole(path)
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
            return _read_beside_code(path, error)
        raise UserError(
            f"{path} is cut short or no model file, or it holds pickled code: "
            "give a whole file of tensors written by torch.save or safetensors"
        ) from error


def check_whole(path: Path) -> None:
    """Raises UserError where a part of a zip file, as torch.save and torch.export.save write them, does not match its
    checksum: torch would load it with other numbers."""
    try:
        if zipfile.is_zipfile(path):
            check_zip(path)
    except (DamagedError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged, for {error}: copy or download it again") from error


def _read_beside_code(path: Path, refusal: Exception) -> Any:
    try:
        return read_without_code(path, refusal)
    except PickledCodeError as error:
        raise UserError(
            f"{path} holds pickled code ({error}), which would run when it is unpickled: "
            "save the state_dict instead, or pass `trust_pickle` if you trust where the file comes from"
        ) from refusal


def _read_shards(path: Path, *, trust_pickle: bool) -> dict[str, Any]:
    """The tensors of all the files that an index names, which are beside it."""
    advice = "copy or download it again"
    try:
        places = typed(read_json_value(path, advice), _Index, "the index")["weight_map"]
    except TypeMismatch as error:
        raise UserError(f"{path} is no index of weights ({error}): {advice}") from error
    files = sorted(set(places.values()))
    weights: dict[str, Any] = {}
    for name in files:
        if name in ("", ".", "..") or re.search(r"[/\\\0]", name) or not (path.parent / name).is_file():
            raise UserError(f"{path} names the file {in_a_line(name)!r}, which is not beside it: copy all of its parts")
        part = _read_whole(path.parent / name, trust_pickle=trust_pickle)
        weights |= part if isinstance(part, Mapping) else {}
    if absent := [name for name in places if name not in weights]:
        raise UserError(
            f"{len(absent)} tensors that {path} names (first: {absent[0]}) are in none of its parts: copy all"
        )
    return weights


def weights_file(folder: Path) -> Path | None:
    """The file in a folder of Hugging Face or timm that has its weights, or the index of several."""
    return next((path for name in _WEIGHTS if (path := folder / name).is_file()), None)


def folder_weights(folder: Path) -> Path:
    """The same; raises UserError where there is none, or an adapter's beside it."""
    refuse_adapter_folder(folder)
    if (path := weights_file(folder)) is None:
        raise UserError(f"{folder} has none of {', '.join(_WEIGHTS)}: give the weights' file, or a whole folder")
    return path


def refuse_adapter_folder(folder: Path) -> None:
    """Raises UserError for what peft's save_pretrained wrote."""
    if (folder / "adapter_config.json").exists():
        raise UserError(
            f"{folder} holds an adapter: merge it into the model first (merge_and_unload in peft) and save that"
        )


def trained_folder(folder: Path) -> tuple[Path, str | None]:
    """The folder with the model in what the Trainer of transformers wrote: itself or its only checkpoint, and a note.

    Raises UserError where it has several checkpoints and nothing else.
    """
    if (folder / "config.json").is_file() or weights_file(folder) or (folder / "adapter_config.json").is_file():
        return folder, None
    checkpoints = sorted(
        (path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d{1,12}", path.name)),
        key=lambda path: int(path.name.rpartition("-")[2]),
    )
    if len(checkpoints) > 1:
        best = _best_checkpoint(checkpoints)
        names = ", ".join(path.name for path in checkpoints)
        advice = f"give {best}, which its trainer calls the best" if best else f"give one, such as {checkpoints[-1]}"
        raise UserError(f"{folder} has no model of its own but {names}: {advice}")
    if checkpoints:
        return checkpoints[0], f"weights: {checkpoints[0].name}, the only checkpoint in {folder}"
    return folder, None


def _best_checkpoint(checkpoints: list[Path]) -> Path | None:
    """What the last trainer_state.json calls the best, by its name, as folders are moved."""
    try:
        state = typed(read_json_value(checkpoints[-1] / "trainer_state.json", "copy it again"), _TrainerState)
    except (UserError, TypeMismatch):
        return None
    name = re.split(r"[/\\]", state["best_model_checkpoint"])[-1]
    return next((path for path in checkpoints if path.name == name), None)


def zip_members(path: Path) -> tuple[str, ...]:
    """The names in a zip file, none where `path` is no whole zip file."""
    try:
        with zipfile.ZipFile(path) as archive:
            return tuple(archive.namelist())
    except Exception:  # A damaged archive breaks in as many ways as it has parts.
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
        with warnings.catch_warnings():
            # torch warns of storages and quantized tensors that it makes itself.
            warnings.simplefilter("ignore")
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

"""Programs of torch.export (.pt2)."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from vitfx.images.preprocess import ASSUMED, Preprocess
from vitfx.models.exported_safety import GRAPH_MEMBER, UnsafeError, without_code
from vitfx.models.model_file import check_whole, zip_members
from vitfx.models.weights import check_finite
from vitfx.support.errors import UserError, in_a_line
from vitfx.support.quiet import quietly


def is_exported(path: Path) -> bool:
    """Whether the file is what torch.export.save writes."""
    return any(member.endswith(f"/{GRAPH_MEMBER}") for member in zip_members(path))


def load_exported(path: Path, *, trust_pickle: bool) -> tuple[nn.Module, Preprocess | None, tuple[str, ...] | None]:
    """The program's module, its preprocessing and the names of its classes.

    The last two are what vitfx wrote beside a program of its own (`vitfx.deploy.program_file`); of others with an input
    (B, 3, H, W), ImageNet's preprocessing at H × W.

    Raises UserError where the file is broken, where it holds anything that could run as code and `trust_pickle` is
    not set, where its batch is fixed, or where it was exported in training mode.
    """
    check_whole(path)
    archive: io.BytesIO | Path = path
    try:
        archive = without_code(path)
    except UnsafeError as reason:
        if not trust_pickle:
            raise UserError(
                f"{path} holds {reason}, which torch.export.load could run as code: export the model again "
                "without it, or pass `trust_pickle` if you trust where the file comes from"
            ) from reason
    except Exception as error:  # A damaged archive breaks in as many ways as it has parts.
        raise UserError(
            f"{path} is a broken torch.export program ({in_a_line(error)}): export the model again"
        ) from error
    try:
        with quietly():
            program = torch.export.load(archive)
        shapes = _input_shapes(program)
        exported = program.module(check_guards=False)
        # The exported module itself refuses .eval(), which everything after this calls.
        module = torch.fx.GraphModule(exported, exported.graph)
        training = _in_training(module)
    except Exception as error:  # The schema changes between versions, and each breaks in its own way.
        raise UserError(
            f"{path} is no program that torch {torch.__version__} can load: export the model again with this version"
        ) from error
    if training:
        raise UserError(f"{path} was exported in training mode: call eval() and export the model again")
    check_finite(program.state_dict, str(path))
    channels, height, width = _image_shape(shapes, path)
    preprocess, classes = _noted(path, "preprocess"), _noted(path, "classes")
    if isinstance(preprocess, dict):
        return module, Preprocess.from_json(preprocess), tuple(map(str, classes)) if classes else None
    return module, Preprocess(size=(height, width), origin=ASSUMED) if channels == 3 else None, None


def _noted(path: Path, name: str) -> Any:
    """What the archive says under this name, None where it does not."""
    member = next((member for member in zip_members(path) if member.endswith(f"/extra/{name}")), None)
    if member is None:
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            return json.loads(archive.read(member))
    except ValueError:
        return None


def _input_shapes(program: ExportedProgram) -> list[torch.Size]:
    inputs = program.graph_signature.user_inputs
    return [node.meta["val"].shape for node in program.graph.nodes if node.op == "placeholder" and node.name in inputs]


def _image_shape(shapes: list[torch.Size], path: Path) -> tuple[int, int, int]:
    if len(shapes) != 1 or len(shapes[0]) != 4:
        raise UserError(f"{path} takes {len(shapes)} inputs: give a program that takes images (B, C, H, W) alone")
    batch, *image = shapes[0]
    if isinstance(batch, int):
        raise UserError(
            f"the batch of {path} is fixed at {batch}: export the model again with "
            "dynamic_shapes=({0: torch.export.Dim('batch')},) and an example batch of 2 or more"
        )
    if not all(isinstance(side, int) for side in image):
        raise UserError(f"the image size of {path} is dynamic: export the model again for one image size")
    channels, height, width = image
    return channels, height, width


def _in_training(module: torch.fx.GraphModule) -> bool:
    dropouts = (torch.ops.aten.dropout.default, torch.ops.aten.dropout_.default)
    return any(node.target in dropouts and node.args[1] and node.args[2] for node in module.graph.nodes)

"""Model files in and out: every kind that vitfx takes becomes one `LoadedModel`; artifacts are written here."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule

from vitfx.graph.outputs import LOGITS, OneOutput, choose_output, outputs_of
from vitfx.graph.plain_module import other_inputs, plain_module, refuse_unusable
from vitfx.graph.trace import check_dtype
from vitfx.images.overrides import Overrides
from vitfx.images.preprocess import Preprocess
from vitfx.models.architectures import KNOWN_ARCHES, build_from_arch, choose_for_arch, own_preprocess
from vitfx.models.exported import is_exported, load_exported
from vitfx.models.factory import build_from_factory
from vitfx.models.graph_json import decode, encode
from vitfx.models.huggingface import load_folder
from vitfx.models.image_size import UNKNOWN, ImageSize, Size
from vitfx.models.model_file import folder_weights, read_model_file, trained_folder, weights_file, write_record
from vitfx.models.record import ARTIFACT_FORMAT, CHECKPOINT_FORMAT, read_record, sealed
from vitfx.models.state_dicts import WEIGHTS, refuse_adapter, tensor_names
from vitfx.models.timm_folder import is_timm_folder, load_timm_folder
from vitfx.models.weights import check_finite, fingerprint, load_weights, unwrap_state_dict
from vitfx.support.errors import UserError, in_a_line
from vitfx.support.reading import check_file


@dataclass(frozen=True)
class LoadedModel:
    """A model ready to be traced."""

    module: nn.Module  #: in eval mode, (B, C, H, W) -> logits (B, K) or another answer, a plain tensor
    preprocess: Preprocess
    classes: tuple[str, ...] | None  #: the logits' names in order, None where the file does not say
    data: str | None  #: the data set that the file names
    source: str  #: what was loaded, for messages
    fingerprint: str  #: of the weights, see `vitfx.models.weights.fingerprint`
    #: what an artifact says of its origin, see `vitfx.models.checkpoint.save_artifact`
    provenance: Mapping[str, Any] = field(default_factory=dict)
    weights_note: str | None = None  #: which weights were taken, where the file has more or wraps them
    image_size: ImageSize = UNKNOWN  #: how the images' size is known, of bare weights
    output_note: str | None = None  #: which output is the answer, where the module returns several

    @property
    def first_lines(self) -> tuple[str, ...]:
        """What was inferred of it, to be said before anything else."""
        notes = self.weights_note, self.image_size.note, self.output_note, self.preprocess.first_line
        return tuple(note for note in notes if note)


@dataclass(frozen=True)
class _Parts:
    module: nn.Module
    preprocess: Preprocess | None
    classes: tuple[str, ...] | None = None
    weights_note: str | None = None
    image_size: ImageSize = UNKNOWN
    data: str | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)


def load_model(
    spec: str,
    *,
    arch: str | None = None,
    trust_pickle: bool = False,
    preprocess: Preprocess | None = None,
    overrides: Overrides | None = None,
    weights: str | None = None,
    output: str | None = None,
) -> LoadedModel:
    """Loads a model from `spec`: "demo", or the path of a file or of a Hugging Face folder.

    arch: the model of a bare state_dict: "torchvision:vit_b_16", "timm:NAME,in_chans=1", "hf:DIR"
    trust_pickle: unpickle whole modules, which runs any code in the file
    preprocess: replaces what the file or the library says
    overrides: replace parts of it
    weights: "ema" or "raw", for a file that has both
    output: the name of the answer, for a model that returns several tensors, see `vitfx.graph.outputs.outputs_of`

    Raises UserError for anything that cannot be loaded safely and completely.
    """
    path = Path(str(resources.files("vitfx.models") / "demo" / "digits.pt")) if spec == "demo" else Path(spec)
    if not path.exists():
        raise UserError(f"{spec} does not exist: give the path of a model file, or demo for the built-in model")
    if not path.is_dir():
        check_file(path, "give a model file, or a folder of Hugging Face or timm")
    try:
        size = preprocess.size if preprocess else overrides.size if overrides else None
        parts = _load(path, arch, trust_pickle, weights, size)
    except UserError:
        raise
    except Exception as error:  # Every reader refuses what it knows; a damaged file may hold what nobody thought of.
        raise UserError(f"{spec} can't be read as a model ({in_a_line(error)}): give a whole file") from error
    preprocess = preprocess or parts.preprocess or own_preprocess(parts.module)
    preprocess = (overrides or Overrides()).applied(preprocess)
    if preprocess is None:
        raise UserError(
            f"{spec} does not say what images it takes: give `image_size` "
            "(and `mean` and `std` unless they are ImageNet's)"
        )
    module, output_note = _returning_answers(parts.module.eval(), preprocess, parts.classes, spec, output)
    named = {} if output in (None, LOGITS) else {f"output {output}": torch.empty(0)}
    return LoadedModel(
        module=module,
        preprocess=preprocess,
        classes=parts.classes,
        data=parts.data,
        source=spec,
        fingerprint=fingerprint({**module.state_dict(), **named}),
        provenance=parts.provenance,
        weights_note=parts.weights_note,
        image_size=parts.image_size,
        output_note=output_note,
    )


def save_checkpoint(
    path: Path,
    *,
    factory: str,
    kwargs: Mapping[str, Any],
    state_dict: Mapping[str, torch.Tensor],
    preprocess: Preprocess,
    classes: Sequence[str] | None = None,
    data: str | None = None,
    made_by: str | None = None,
) -> None:
    """Writes a checkpoint that `load_model` reads: the same arguments give the same bytes.

    factory: "module:callable" that makes the model from `kwargs`, such as "torchvision.models:VisionTransformer"
    made_by: the command that trained it
    """
    size, mean, std = list(preprocess.size), list(preprocess.mean), list(preprocess.std)
    record = {
        "format": CHECKPOINT_FORMAT,
        "factory": factory,
        "kwargs": dict(kwargs),
        "state_dict": {name: value.detach().cpu().clone() for name, value in state_dict.items()},
        "preprocess": preprocess.to_json() | {"size": size, "mean": mean, "std": std},
        "classes": None if classes is None else list(classes),
        "data": data,
        "made_by": made_by,
    }
    write_record(path, sealed(record))


def _load(path: Path, arch: str | None, trust_pickle: bool, which: str | None, size: Size | None) -> _Parts:
    if which not in (None, *WEIGHTS):
        raise UserError(f"the weights asked for are {which!r}: give one of {', '.join(WEIGHTS)}")
    source, note = str(path), None
    if path.is_dir():
        path, note = trained_folder(path)
    if arch is not None and arch.startswith("hf:"):
        folder = Path(arch.removeprefix("hf:"))
        own = path.is_dir() or path.resolve() == (weights_file(folder) or folder).resolve()
        contents = None if own else read_model_file(path, trust_pickle=trust_pickle)
        return _noting(_from_folder(folder, contents, source, which), note, source, which)
    if path.is_dir() and arch is None:
        return _noting(_from_folder(path, None, source, which), note, source, which)
    if is_exported(path):
        return _noting(_Parts(*load_exported(path, trust_pickle=trust_pickle)), None, source, which)
    contents = read_model_file(folder_weights(path) if path.is_dir() else path, trust_pickle=trust_pickle)
    if isinstance(contents, nn.Module):
        module = plain_module(contents)
        check_finite(module.state_dict(), source)
        return _noting(_Parts(module, None), None, source, which)
    if isinstance(contents, Mapping) and "format" in contents:
        if arch is not None:
            raise UserError(f"{source} names its own model, so `arch` {arch} is not needed: leave it out")
        record = read_record(contents, source)
        module = build_from_factory(record.factory, record.kwargs) if record.factory else decode(record.graph)
        load_weights(module, record.weights, record.factory or "the graph beside it", source)
        parts = _Parts(module, record.preprocess, record.classes, data=record.data, provenance=record.provenance)
        return _noting(parts, None, source, which)
    if arch is None:
        refuse_adapter(contents, source)
        if not tensor_names(contents):
            unwrap_state_dict(contents, source)
        raise UserError(f"{source} holds only weights: name their model with `arch`, {KNOWN_ARCHES}")
    chosen = choose_for_arch(arch, contents, source, which)
    built = build_from_arch(arch, chosen.weights, chosen.source, size)
    return _Parts(built.module, built.preprocess, weights_note=chosen.note or note, image_size=built.image_size)


def _from_folder(folder: Path, contents: Any, source: str, which: str | None) -> _Parts:
    load = load_timm_folder if is_timm_folder(folder) else load_folder
    return _Parts(*load(folder, contents, source, which))


def _noting(parts: _Parts, note: str | None, source: str, which: str | None) -> _Parts:
    """`parts` with what was taken; raises UserError for a choice of weights where there was nothing to choose from."""
    if which is not None and parts.weights_note is None:
        raise UserError(f"{source} has only one set of weights, so `weights` {which} is not needed: leave it out")
    return replace(parts, weights_note=parts.weights_note or note)


def _returning_answers(
    module: nn.Module, preprocess: Preprocess, classes: tuple[str, ...] | None, source: str, output: str | None
) -> tuple[nn.Module, str | None]:
    """`module`, wrapped where it returns several tensors, once it has answered a batch of blank images; and which
    output that is, where this is to be said."""
    refuse_unusable(module)
    check_dtype(module)
    shape = (2, preprocess.channels, *preprocess.size)
    try:
        # torch.fx prints a traceback of what goes wrong in a graph before it raises it.
        with torch.no_grad(), redirect_stderr(io.StringIO()):
            answer = module(torch.zeros(shape))
    except Exception as error:  # Each model fails in its own way on images of another size.
        first = next((part for part in module.modules() if isinstance(part, nn.Conv2d)), None)
        if first is not None and first.in_channels != preprocess.channels:
            raise UserError(
                f"{source} takes images of {first.in_channels} channels, not {preprocess.channels}: "
                f"give `mean` and `std` with {first.in_channels} numbers each"
            ) from error
        if others := other_inputs(module):
            raise UserError(
                f"{source} takes more than images ({', '.join(others)}), and gets images alone: "
                "give a model whose forward() takes one tensor (B, C, H, W)"
            ) from error
        raise UserError(
            f"{source} does not take images of {shape[1]}×{shape[2]}×{shape[3]} ({in_a_line(error)}): "
            "give the `image_size`, `mean` and `std` that it was trained with"
        ) from error
    name, note = choose_output(answer, shape[0], output)
    if name is not None:
        module, answer = OneOutput(module, name).eval(), outputs_of(answer)[name]
    if not isinstance(answer, torch.Tensor) or not answer.ndim or answer.shape[0] != 2:
        form = tuple(answer.shape) if isinstance(answer, torch.Tensor) else type(answer).__name__
        raise UserError(f"{source} returns {form} for two images, not a tensor with an answer for each: give another")
    logits = answer[0].numel() if answer.ndim < 3 else 0
    if classes is not None and logits and len(classes) not in {logits, max(2, logits)}:
        raise UserError(f"{source} names {len(classes)} classes but has {logits} logits: correct its classes")
    return module, note


def save_artifact(
    path: Path,
    graph_module: GraphModule,
    preprocess: Preprocess,
    classes: tuple[str, ...] | None,
    data: str | None,
    provenance: dict[str, Any],
) -> None:
    """Writes what `vitfx.models.checkpoint.load_model` reads back as a canonical graph, without the original's code.

    provenance: JSON-like facts: vitfx's version, the original's fingerprint, settings, the circuit's fingerprint.
    """
    record = {
        "format": ARTIFACT_FORMAT,
        "graph": encode(graph_module),
        "state_dict": {name: value.detach().cpu().contiguous() for name, value in graph_module.state_dict().items()},
        "preprocess": preprocess.to_json(),
        "classes": None if classes is None else list(classes),
        "data": data,
        "provenance": provenance,
    }
    write_record(path, sealed(record))

"""The compiler's front: a module becomes a canonical graph that gives the same logits and can be proved about."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from passes.base import run_passes
from passes.merge_tokens import UndoMerges, schedule_of
from passes.stream import read_sites
from passes.token_schedule import TokenSchedule
from vitfx.graph.answers import AnswerKind, Kind, declared_kind, ends_without_bias, find_kind, projection_kind
from vitfx.graph.chosen_classes import ChosenClasses
from vitfx.graph.float64 import logits_in_float64
from vitfx.graph.trace import at_rest, first_line, to_canonical
from vitfx.graph.verify import VerificationError
from vitfx.support.errors import UserError
from vitfx.support.progress import Watcher
from vitfx.support.text import large

_IDENTITY_TOLERANCE = 1e-4
_ALIKE = 1e-5
"""Of the greatest logit: what logits of equal images may differ by, in float32."""


@dataclass(frozen=True)
class Canonical:
    """A canonical graph that was checked against its module."""

    graph_module: GraphModule  #: on the CPU, in eval mode
    notes: tuple[str, ...]  #: sublayers that are not prunable, and why; weights that are no longer shared
    answers: Tensor  #: to the first images
    declared: Kind | None = None  #: what the module says of its answers
    schedule: TokenSchedule = field(
        default_factory=TokenSchedule
    )  #: by which tokens merged in the module, where they do not in the graph
    classes: tuple[str, ...] | None = None  #: those that were chosen, where the module answers only some of its own
    other: bool = False  #: whether the last of these stands for all that were not chosen

    def kind(self, labels: Tensor | None, asked: Kind | None, watcher: Watcher) -> AnswerKind:
        """Of the answers, which is told. labels: of all images. asked: by the user. Raises UserError."""
        kind = find_kind(self.graph_module, self.answers, labels, asked=asked, declared=self.declared)
        if self.classes is not None and kind.name != "classes":
            raise UserError(
                f"`classes` is for models of classes, and this one's task is {kind.name} ({kind.reason}): leave it out"
            )
        watcher.say(kind.sentence)
        return kind

    def told(self, kind: Kind) -> dict[str, Any]:
        """What a circuit's settings say of the answers: only what is not usual."""
        task: dict[str, Any] = {} if kind.name == "classes" else {"task": kind.name}
        if self.other:
            task["other"] = True
        return task if self.classes is None else {**task, "classes": list(self.classes)}


def read_module(module: nn.Module, pixels: Tensor, watcher: Watcher, *, merged: bool = False) -> Canonical:
    """Traces the module, which stays as it is, and reports the notes.

    pixels: (N, C, H, W), two images or more, which tell the batch's axis from the others.
    merged: leaves tokens merged where they merge in the module; else no tokens merge in the graph.
    Raises UserError where the model can't be used, VerificationError where its graph gives other logits.
    """
    watcher.say("tracing the model")
    module = at_rest(module).cpu()
    traced = to_canonical(module, pixels[:2])
    _check_repeats(module, pixels[:2])
    answers = _check_identity(module, traced.graph_module, pixels[:8])
    _check_float64(traced.graph_module, pixels[:2])
    notes = (*traced.notes, *_shared_weights(module, traced.graph_module))
    graph_module, schedule = traced.graph_module, TokenSchedule()
    if not merged and (schedule := schedule_of(graph_module)):
        graph_module = run_passes(graph_module, [UndoMerges()]).graph_module.eval()
        notes += (f"tokens merge in the model given, by the schedule {schedule}: it is judged without that",)
    watcher.say(_recognised(graph_module))
    for note in notes:
        watcher.say(f"note: {note}")
    declared = declared_kind(module)
    classes, other, whole, all_answers = None, False, module, answers
    if isinstance(module, ChosenClasses):
        classes, other, whole = module.chosen.names, module.rest is not None, module.model
        with torch.no_grad():
            all_answers = whole(pixels[:2])
    if declared is None and ends_without_bias(graph_module):
        declared = projection_kind(whole, all_answers)
        if declared is None and classes is not None:
            declared = Kind("classes", "some of them were chosen")
    return Canonical(graph_module, notes, answers, declared, schedule, classes, other)


def _recognised(graph_module: GraphModule) -> str:
    """What can be pruned, in a sentence."""
    sizes: dict[str, list[int]] = {"head": [], "neuron": []}
    for site in read_sites(graph_module):
        sizes[site.module.kind].append(site.module.units)
    parts = [
        f"{len(units)} {whole}{'' if len(units) == 1 else 's'} of {_range(units)} {kind}s"
        for (kind, units), whole in zip(sizes.items(), ("attention", "MLP"), strict=True)
        if units
    ]
    count = sum(weight.numel() for weight in graph_module.parameters())
    return f"the model: {large(count)} parameters; {' and '.join(parts) or 'no sublayer'} can be pruned"


def _range(counts: Sequence[int]) -> str:
    least, most = min(counts), max(counts)
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"


def check_answers_differ(answers: Tensor) -> None:
    """Raises UserError where the model answers all images alike, so that nothing can be learned from these.

    answers: the model's own, (N, …)
    """
    if not float((answers - answers[:1]).abs().max()) > _ALIKE * float(answers.abs().max()):
        raise UserError(
            f"the model gives the same answer for all {len(answers)} calibration images, which says nothing of what it "
            "needs: give images that differ from one another"
        )


def _check_repeats(module: nn.Module, pixels: Tensor) -> None:
    with torch.no_grad():
        first, again = module(pixels), module(pixels)
    if not float((first - again).abs().max()) <= _ALIKE * float(first.abs().max()) and bool(again.isfinite().all()):
        raise UserError(
            "the model draws random numbers: two calls differ for the same images, so nothing can be proved about it: "
            "remove what is random from its forward() in eval mode"
        )


def _check_identity(module: nn.Module, canonical: GraphModule, pixels: Tensor) -> Tensor:
    """The canonical graph's answers."""
    with torch.no_grad():
        expected: Tensor = module(pixels)
        logits: Tensor = canonical(pixels)
    if not bool(expected.any()):
        raise UserError("the model's logits are zero for every image: its head was never trained, give a trained model")
    error = float((expected - logits).abs().max() / expected.abs().max())
    if not error < _IDENTITY_TOLERANCE:
        raise VerificationError(
            f"the canonical graph's logits differ from the model's by {error:.1e} of their greatest"
        )
    return logits


def _check_float64(canonical: GraphModule, pixels: Tensor) -> None:
    """The proofs run in float64: a model that can't is refused now, not after discovery."""
    try:
        logits = logits_in_float64(canonical, pixels)
        reason = "" if logits.dtype == torch.float64 else f"its logits stay {logits.dtype}"
    except RuntimeError as error:
        reason = first_line(error)
    if reason:
        raise UserError(
            f"the model does not run in float64, in which deletions are proved ({reason}): "
            "remove casts to fixed types from its forward()"
        )


def _shared_weights(module: nn.Module, canonical: GraphModule) -> tuple[str, ...]:
    after, before = (sum(weight.numel() for weight in graph.parameters()) for graph in (canonical, module))
    # Biases of zeros that the graph adds, such as keys', are not shared.
    learnt, given = (sum(int(weight.count_nonzero()) for weight in graph.parameters()) for graph in (canonical, module))
    if after <= before or learnt <= given:
        return ()
    return (f"the model shares weights between layers, and its graph does not: {before:,} parameters became {after:,}",)

"""The compiler without files: a module and images in, a proved smaller module out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from passes.plan import DeletionPlan
from vitfx.acdc import Journal
from vitfx.circuit import Circuit
from vitfx.discovery import Discovery, discover, journal_key, origins
from vitfx.edge_graph import kl_divergence
from vitfx.errors import UserError
from vitfx.image_set import Images
from vitfx.liveness import make_plan
from vitfx.progress import Watcher
from vitfx.settings import Settings
from vitfx.trace import at_rest, to_canonical
from vitfx.verify import Verification, VerificationError, rewrite, verify

_VERIFIED_IMAGES = 64
_BATCH = 32
_IDENTITY_TOLERANCE = 1e-4


@dataclass(frozen=True)
class Pruned:
    """module: the artifact, a canonical graph on the CPU, in eval mode. original: the unpruned canonical graph.

    notes: what the user should know: sublayers that are not prunable and why, weights that are no longer shared.
    """

    module: GraphModule
    original: GraphModule
    circuit: Circuit
    plan: DeletionPlan
    verification: Verification
    notes: tuple[str, ...]


OpenJournal = Callable[[str], Journal]
"""Makes the journal of a discovery from its key."""


def compile_model(
    module: nn.Module,
    images: Images,
    settings: Settings,
    *,
    device: torch.device,
    open_journal: OpenJournal,
    watcher: Watcher,
    accept: Callable[[GraphModule], object] | None = None,
) -> Pruned:
    """Traces, discovers, plans, rewrites and verifies. The module stays as it is.

    images: two at least, for the axis of the batch to be told from others.
    accept: is given the canonical graph before discovery, and may refuse it by raising.
    Raises UserError where the model or the images can't be used, VerificationError where a proof fails.
    """
    watcher.say("tracing the model")
    module = at_rest(module).cpu()
    example = images.pixels[:2]
    traced = to_canonical(module, example)
    _check_identity(module, traced.graph_module, images.pixels[:8])
    _check_float64(traced.graph_module, example)
    notes = (*traced.notes, *_shared_weights(module, traced.graph_module))
    for note in notes:
        watcher.say(f"note: {note}")
    if accept is not None:
        accept(traced.graph_module)
    on_device = traced.graph_module.to(device)
    facts = origins(on_device, images)
    journal = open_journal(journal_key(settings, facts, device))
    found = discover(on_device, images, settings, facts, journal, watcher)
    plan = make_plan(found.circuit, found.graph, found.constants)
    watcher.say(f"removed {len(found.circuit.removed)} of {len(found.circuit.decisions)} edges; plan:\n{plan}")
    return _carry_out(on_device.cpu(), found, plan, images, notes)


def _carry_out(
    original: GraphModule, found: Discovery, plan: DeletionPlan, images: Images, notes: tuple[str, ...]
) -> Pruned:
    artifact = rewrite(original, plan).graph_module.eval()
    verification = verify(original, artifact, plan, images.pixels[:_VERIFIED_IMAGES])
    if found.circuit.settings["ablation"] == "resample":
        notes = (*notes, _cost_of_constants(original, artifact, images, found.circuit))
    return Pruned(artifact, original, found.circuit, plan, verification, notes)


def _cost_of_constants(original: GraphModule, artifact: GraphModule, images: Images, circuit: Circuit) -> str:
    """A resampled circuit is not what an artifact can be: how far apart the two are."""
    with torch.no_grad():
        total = sum(
            float(kl_divergence(original(batch), artifact(batch)).sum()) for batch in images.pixels.split(_BATCH)
        )
    return (
        "resampling replaces what is removed with another image's values, an artifact with their mean: "
        f"D_KL(original ‖ artifact) is {total / len(images):.4f} on the calibration images, "
        f"the circuit's {circuit.kl:.4f}"
    )


def _check_identity(module: nn.Module, canonical: GraphModule, pixels: Tensor) -> None:
    with torch.no_grad():
        expected, got = module(pixels), canonical(pixels)
    if not bool(expected.any()):
        raise UserError(
            "the model's logits are all zero, whatever the image: its head was never trained, give a trained model"
        )
    error = float((expected - got).abs().max() / expected.abs().max())
    if not error < _IDENTITY_TOLERANCE:
        raise VerificationError(
            f"the canonical graph's logits differ from the model's by {error:.1e} of their greatest"
        )


def _check_float64(canonical: GraphModule, pixels: Tensor) -> None:
    """The proof is run in float64: what can't be is told now, not after discovery."""
    try:
        with torch.no_grad():
            logits = copy.deepcopy(canonical).double()(pixels.double())
        reason = "" if logits.dtype == torch.float64 else f"its logits stay {logits.dtype}"
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
    if reason:
        raise UserError(
            f"the model can't be run in float64, in which deletions are proved ({reason}): "
            "take casts to fixed types out of its forward()"
        )


def _shared_weights(module: nn.Module, canonical: GraphModule) -> tuple[str, ...]:
    ours, theirs = (sum(one.numel() for one in graph.parameters()) for graph in (canonical, module))
    if ours <= theirs:
        return ()
    return (f"the model shares weights between layers, and its graph does not: {theirs:,} parameters became {ours:,}",)

"""The compiler without files: a module and images in, a proved smaller module out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from passes.plan import DeletionPlan
from vitfx.circuits.circuit import Circuit
from vitfx.circuits.liveness import make_plan
from vitfx.discovery.basis.protocol import Journal
from vitfx.discovery.basis.settings import Settings
from vitfx.discovery.replay import replay
from vitfx.discovery.run import Discovery, discover, journal_key, origins
from vitfx.graph.canonical import read_module
from vitfx.graph.divergence import kl_divergence
from vitfx.graph.verify import Verification, rewrite, verify
from vitfx.images.image_set import Images
from vitfx.pruning.compensation import Compensated, compensate
from vitfx.support.progress import Watcher

_VERIFIED_IMAGES = 64
_BATCH = 32


@dataclass(frozen=True)
class Pruned:
    """module: the artifact, a canonical graph on the CPU, in eval mode. original: the unpruned canonical graph.

    notes: what the user should know: sublayers that are not prunable and why, weights that are no longer shared, what
    the artifact has that the circuit has not. artifact_kl: D_KL(original ‖ artifact) in nats an image on the
    calibration images, where the artifact computes something else than the circuit; None where it is the circuit's.
    compensation: what makes up for the dead, and how well. missed: what was measured instead, where a goal was asked
    for and not met; None otherwise.
    """

    module: GraphModule
    original: GraphModule
    circuit: Circuit
    plan: DeletionPlan
    verification: Verification
    notes: tuple[str, ...]
    compensation: Compensated
    artifact_kl: float | None = None
    missed: str | None = None


@dataclass(frozen=True)
class Compensation:
    """kind: see `vitfx.pruning.compensation.compensate`. pixels: images for it, preprocessed; None for those of
    calibration."""

    kind: str = "ridge"
    pixels: Tensor | None = None


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
    circuit: Circuit | None = None,
    compensation: Compensation = Compensation(),
) -> Pruned:
    """Traces, discovers, plans, makes up for what goes, rewrites and verifies. The module stays as it is.

    images: two at least, for the axis of the batch to be told from others.
    accept: is given the canonical graph before discovery, and may refuse it by raising.
    circuit: stands in place of discovery; `settings` are its own then, and `images` its calibration images.
    Raises UserError where the model, the images or the circuit can't be used, VerificationError where a proof fails.
    """
    front = read_module(module, images.pixels, watcher)
    if accept is not None:
        accept(front.graph_module)
    on_device = front.graph_module.to(device)
    facts = origins(on_device, images)
    if circuit is None:
        journal = open_journal(journal_key(settings, facts, device))
        found = discover(on_device, images, settings, facts, journal, watcher)
    else:
        found = replay(circuit, on_device, images, facts)
    plan = make_plan(found.circuit, found.graph, found.constants)
    watcher.say(f"removed {len(found.circuit.removed):,} of {len(found.circuit.decisions):,} edges; plan:\n{plan}")
    pixels = images.pixels if compensation.pixels is None else compensation.pixels
    made_up = compensate(on_device, plan, pixels, compensation.kind, progress=watcher.bar("compensation"))
    if made_up.kl is not None:
        watcher.say(made_up.sentence)
    return _carry_out(on_device.cpu(), found, plan, made_up, images, settings, front.notes, watcher)


def _carry_out(
    original: GraphModule,
    found: Discovery,
    ablated: DeletionPlan,
    made_up: Compensated,
    images: Images,
    settings: Settings,
    notes: tuple[str, ...],
    watcher: Watcher,
) -> Pruned:
    """ablated: the plan with the circuit's own constants."""
    plan = made_up.plan
    artifact = rewrite(original, plan).graph_module.eval()
    verification = verify(original, artifact, plan, images.pixels[:_VERIFIED_IMAGES])
    own: list[str] = []
    if not plan.deletions:
        own.append(f"no head or MLP path is dead at {settings.threshold}: nothing is deleted")
    artifact_kl = None
    said = _differences(found, settings, ablated, plan)
    if said:
        artifact_kl = _divergence(original, artifact, images)
        own.append(
            f"{' and '.join(said)}, which takes D_KL from the original, on the calibration images, from "
            f"{found.circuit.kl:.4f} to {artifact_kl:.4f}"
        )
    for note in own:
        watcher.say(f"note: {note}")
    return Pruned(artifact, original, found.circuit, plan, verification, (*notes, *own), made_up, artifact_kl)


@torch.no_grad()
def _divergence(original: GraphModule, artifact: GraphModule, images: Images) -> float:
    """Mean D_KL(original ‖ artifact)."""
    batches = images.pixels.split(_BATCH)
    return sum(float(kl_divergence(original(batch), artifact(batch)).sum()) for batch in batches) / len(images)


def _differences(found: Discovery, settings: Settings, ablated: DeletionPlan, plan: DeletionPlan) -> list[str]:
    """What the artifact is that the circuit is not."""
    said = []
    if not found.graph.reads_stream:
        said.append("the artifact restores the edges between survivors")
    if plan.refits:
        said.append("survivors make up for the dead")
    elif _constants(plan) != _constants(ablated):
        left = "nothing" if not any(_constants(plan)) else "their mean"
        said.append(f"the dead leave {left} behind")
    elif settings.ablation == "resample":
        said.append("the artifact has a mean where resampling has another image's values")
    return said


def _constants(plan: DeletionPlan) -> list[bool]:
    """Which deletions leave something behind."""
    return [one.constant is not None for one in plan.deletions]

"""The compiler without files: a module and images go in, a proven smaller module comes out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from passes.merge_tokens import MergeBySchedule
from passes.plan import DeletionPlan
from vitfx.circuits.circuit import Circuit
from vitfx.circuits.liveness import make_plan
from vitfx.deploy.precision_file import Rounding
from vitfx.discovery.basis.protocol import Journal
from vitfx.discovery.basis.settings import Settings
from vitfx.discovery.replay import replay
from vitfx.discovery.run import Discovery, check_settings, discover, journal_key, origins
from vitfx.graph.answers import Kind
from vitfx.graph.canonical import read_module
from vitfx.graph.divergence import CLASSES, Divergence
from vitfx.graph.kinds import WORDS
from vitfx.graph.stages import sublayers_of
from vitfx.graph.verify import Verification, rewrite, verify
from vitfx.images.image_set import Images
from vitfx.images.selection import list_names
from vitfx.pruning.compensation import Compensated, compensate, divergence
from vitfx.pruning.token_merging import choose_merging, merging_note
from vitfx.support.errors import UserError
from vitfx.support.progress import Watcher

_VERIFIED_IMAGES = 64


@dataclass(frozen=True)
class Pruned:
    """A pruned model, and how it came about."""

    module: GraphModule  #: the artifact, a canonical graph on the CPU, in eval mode
    original: GraphModule  #: the unpruned canonical graph
    circuit: Circuit
    plan: DeletionPlan
    verification: Verification
    #: for the user: sublayers that can't be pruned and why, weights that are no longer shared, how the artifact differs
    #: from the circuit
    notes: tuple[str, ...]
    compensation: Compensated  #: what makes up for the deletions, and how well
    #: D_KL(original ‖ artifact) in nats an image, on the calibration images for a circuit and on held-out ones for a
    #: goal; None where the artifact computes just what the circuit does
    artifact_kl: float | None = None
    missed: str | None = None  #: what was measured instead of a goal that was missed; None otherwise
    divergence: Divergence = CLASSES  #: of the model's kind of answers
    rounding: Rounding | None = None  #: how an int8 file is made, where that was chosen with the model


@dataclass(frozen=True)
class Compensation:
    """How deletions are to be made up for."""

    kind: str = "ridge"  #: see `vitfx.pruning.compensation.compensate`
    pixels: Tensor | None = None  #: preprocessed images to fit on; None for the calibration images


OpenJournal = Callable[[str], Journal]
"""Opens the journal of the discovery with this key."""


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
    task: Kind | None = None,
    tokens: str | None = None,
) -> Pruned:
    """Traces, discovers, plans, compensates, rewrites and verifies. The module stays as it is.

    images: two at least, which tells the batch axis from the others
    accept: is given the canonical graph before discovery, and may refuse it by raising
    circuit: replaces discovery; `settings` are then its own, and `images` its calibration images
    task: the kind of the model's answers, as the user says; a circuit has its own
    tokens: by what schedule tokens merge in the artifact, see `vitfx.pruning.token_merging.choose_merging`

    Raises UserError where the model, the images or the circuit can't be used, VerificationError where a proof fails.
    """
    front = read_module(module, images.pixels, watcher)
    merging = choose_merging(front, tokens, images.pixels)
    if merging is not None and settings.ablation == "position-mean":
        raise UserError("position-mean leaves a constant for each token behind, and then none can merge: take mean")
    if accept is not None:
        accept(front.graph_module)
    if circuit is not None:
        task = _replayed(settings, front.classes)
    kind = front.kind(images.labels, task, watcher)
    settings = replace(settings, task=kind.name, classes=front.classes, other=front.other)
    check_settings(settings)
    on_device = front.graph_module.to(device)
    facts = origins(on_device, images)
    if circuit is None:
        journal = open_journal(journal_key(settings, facts, device))
        discovery = discover(on_device, images, settings, facts, journal, watcher)
    else:
        discovery = replay(circuit, on_device, images, facts)
    circuit = discovery.circuit
    plan = make_plan(circuit, discovery.graph, discovery.constants)
    watcher.say(f"removed {len(circuit.removed):,} of {len(circuit.decisions):,} edges; plan:\n{plan}")
    measure = discovery.calibration.divergence
    compensated = _compensated(on_device, plan, images, compensation, measure, watcher)
    original = on_device.cpu()
    artifact, verification = carry_out(original, compensated.plan, images, merging, watcher)
    artifact_kl = None
    differences = _differences(discovery, settings, plan, compensated.plan)
    if differences := [*differences, *(["tokens merge"] if merging else [])]:
        artifact_kl = divergence(original, compensated.plan, images.pixels, measure, merging)
    notes = _notes(settings, compensated.plan, differences, circuit.kl, artifact_kl)
    for note in notes:
        watcher.say(f"note: {note}")
    notes = (*front.notes, *kind.note, *merging_note(original, merging), *notes)
    return Pruned(
        artifact, original, circuit, compensated.plan, verification, notes, compensated, artifact_kl, divergence=measure
    )


def _replayed(settings: Settings, asked: tuple[str, ...] | None) -> Kind:
    """The task of a circuit. Raises UserError where it was found for other classes than are asked for."""
    if settings.classes != asked:
        first, second = ("all classes" if names is None else list_names(names) for names in (settings.classes, asked))
        raise UserError(
            f"the circuit was found for {first}, and the model is asked for {second}: choose the same `classes`, or "
            "discover again"
        )
    return Kind(settings.task, "as the circuit was found")


def _compensated(
    original: GraphModule,
    plan: DeletionPlan,
    images: Images,
    compensation: Compensation,
    measure: Divergence,
    watcher: Watcher,
) -> Compensated:
    pixels = images.pixels if compensation.pixels is None else compensation.pixels
    bar = watcher.bar("compensation")
    compensated = compensate(original, plan, pixels, compensation.kind, measure=measure, progress=bar)
    if compensated.kl is not None:
        watcher.say(compensated.sentence)
    return compensated


def _notes(
    settings: Settings, plan: DeletionPlan, differences: list[str], kl: float, artifact_kl: float | None
) -> tuple[str, ...]:
    """kl: of the circuit. differences: how the artifact differs from it."""
    notes: list[str] = []
    if not plan.deletions:
        notes.append(f"no head or MLP path is dead at {settings.threshold}: nothing is deleted")
    if artifact_kl is not None:
        name = "D_KL" if settings.task == "classes" else f"the {WORDS[settings.task].divergence}"
        notes.append(
            f"{' and '.join(differences)}, which takes {name} from the original, on the calibration images, from "
            f"{kl:.4f} to {artifact_kl:.4f}"
        )
    return tuple(notes)


def carry_out(
    original: GraphModule,
    plan: DeletionPlan,
    images: Images,
    merging: MergeBySchedule | None,
    watcher: Watcher,
) -> tuple[GraphModule, Verification]:
    """The artifact of a plan, in eval mode, and its proof. Raises VerificationError."""
    artifact = rewrite(original, plan, merging).graph_module.eval()
    return artifact, verify(original, artifact, plan, images.pixels[:_VERIFIED_IMAGES], watcher.bar("proof"))


def _differences(discovery: Discovery, settings: Settings, ablated: DeletionPlan, plan: DeletionPlan) -> list[str]:
    """How the artifact differs from the circuit. ablated: the plan with the circuit's own constants."""
    differences = []
    if not discovery.graph.reads_stream:
        differences.append("the artifact restores the edges between survivors")
    halved = {deletion.name for deletion in plan.deletions if not deletion.whole}
    modules = sublayers_of(discovery.graph.stages)
    if coupled := [name for name, module in modules.items() if name in halved and module.inner_norm is not None]:
        differences.append(f"the norm inside {', '.join(coupled)} runs over survivors alone")
    if plan.refits:
        differences.append("survivors make up for the dead")
    elif _constants(plan) != _constants(ablated):
        left = "nothing" if not any(_constants(plan)) else "their mean"
        differences.append(f"the dead leave {left} behind")
    elif settings.ablation == "resample":
        differences.append("the artifact has a mean where resampling has another image's values")
    return differences


def _constants(plan: DeletionPlan) -> list[bool]:
    """Which deletions leave something behind."""
    return [deletion.constant is not None for deletion in plan.deletions]

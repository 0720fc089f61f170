"""Discovery from images to circuit: references, groups of neurons, the method, and what the result depends on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from torch.fx import GraphModule

from passes.cost import measure_cost
from vitfx.circuits.circuit import Circuit, Decision
from vitfx.circuits.details import Details
from vitfx.circuits.edge_graph import EdgeGraph, Paths
from vitfx.discovery.basis.ablation import make_reference
from vitfx.discovery.basis.calibration import Calibration, calibrate
from vitfx.discovery.basis.fidelity import fidelity
from vitfx.discovery.basis.metric import check_metric
from vitfx.discovery.basis.protocol import Engine, Journal, Limits
from vitfx.discovery.basis.settings import DIFFERENTIATING, EDGE_PRUNING, RANKING, Settings
from vitfx.discovery.engines.head_engine import HeadEngine
from vitfx.discovery.engines.reader_engine import ReaderEngine
from vitfx.discovery.methods.acdc import Order, acdc, by_attribution, forward, reverse
from vitfx.discovery.methods.attribution import fisher, score_edges
from vitfx.discovery.methods.eap_acdc import eap_acdc
from vitfx.discovery.methods.edge_pruning import Step, edge_pruning
from vitfx.discovery.methods.forecast_accuracy import calibration_of
from vitfx.discovery.methods.rank import below, least, removed_by
from vitfx.discovery.methods.unit_importance import fisher_scores, group_paths, stream_scores
from vitfx.graph.canonical import check_answers_differ
from vitfx.graph.divergence import Divergence, make_divergence
from vitfx.graph.kinds import WORDS
from vitfx.graph.stages import Reference, read_stages, sublayers_of
from vitfx.graph.verify import tokens_of
from vitfx.images.image_set import Images
from vitfx.models.weights import fingerprint
from vitfx.support.errors import UserError
from vitfx.support.processes import Alone, Share, on_each
from vitfx.support.progress import Watcher
from vitfx.version import VERSION

_MISSED = 0.01
"""By how much of what is to be removed edge pruning may miss it in silence."""


@dataclass(frozen=True)
class Discovery:
    """A circuit with what it takes to run it and to delete what is dead in it."""

    circuit: Circuit
    graph: EdgeGraph  #: whose edges it decides
    calibration: Calibration
    reference: Reference  #: what the readers of removed edges see, for the calibration images
    constants: Reference | None  #: what artifacts replace dead units with; None for zero ablation


def origins(graph_module: GraphModule, images: Images) -> dict[str, str]:
    """What a circuit was found with: versions, and sha256 of the weights and of the calibration images and labels."""
    pixels = hashlib.sha256(images.pixels.contiguous().numpy().tobytes())
    pixels.update(b"" if images.labels is None else images.labels.numpy().tobytes())
    return {
        "vitfx": VERSION,
        "torch": torch.__version__,
        "model": fingerprint(graph_module.state_dict()),
        "images": pixels.hexdigest(),
    }


def journal_key(settings: Settings, facts: dict[str, str], device: torch.device) -> str:
    """sha256 of everything that the decisions depend on."""
    record = {"settings": settings.to_json(), "origins": facts, "device": device.type}
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def hardest_first(measure: Divergence, answers: Tensor, images: Images, share: Share) -> Images:
    """The images by the entropy of the model's answer, highest first: on these, removals show soonest.

    answers: the model's, to these images, on the CPU.
    """
    # Processes on other machines may round differently, and all must take their shares from the same order.
    order = share.broadcast(torch.argsort(measure.certainty(answers), stable=True))
    return images.subset(order)


def check_settings(settings: Settings) -> None:
    """Raises UserError for a metric that the task's answers do not have."""
    if settings.method in DIFFERENTIATING:
        check_metric(settings.metric, settings.task)


def whole_mlps(graph_module: GraphModule) -> Paths:
    """Every MLP as a single path."""
    modules = sublayers_of(read_stages(graph_module))
    return {name: [list(range(module.units))] for name, module in modules.items() if module.kind == "neuron"}


@dataclass(frozen=True)
class Setup:
    """What a discovery needs before it scores any edge."""

    coarse: EdgeGraph  #: with whole MLPs
    calibration: Calibration
    reference: Reference  #: see `Discovery`
    constants: Reference | None  #: see `Discovery`


def prepare(graph_module: GraphModule, images: Images, settings: Settings, share: Share | None = None) -> Setup:
    """Corrupts the images and works out what stands in for removed writers.

    Raises UserError where the images can't be corrupted this way, or a process would have fewer than two of them.
    """
    share = share or Alone()
    if len(images) < 2 * share.world:
        raise UserError(f"{len(images)} images are too few for {share.world} processes: give each 2 or more")
    device = next(graph_module.parameters()).device
    with torch.no_grad():
        answers = torch.cat([graph_module(batch.to(device)).cpu() for batch in images.pixels.split(32)])
    check_answers_differ(answers)
    measure = make_divergence(settings.task, answers)
    ordered = hardest_first(measure, answers, images, share)
    calibration = calibrate(ordered, settings.corruption, settings.seed, device, share, measure)
    coarse = EdgeGraph(graph_module, whole_mlps(graph_module))
    make = partial(make_reference, coarse, calibration.corrupted, share=calibration.share)
    reference = make(settings.ablation)
    constants: Reference | None = reference
    if settings.ablation in ("zero", "resample"):
        constants = None if settings.ablation == "zero" else make("mean")
    return Setup(coarse, calibration, reference, constants)


def discover(
    graph_module: GraphModule,
    images: Images,
    settings: Settings,
    facts: dict[str, str],
    journal: Journal,
    watcher: Watcher,
    share: Share | None = None,
    folder: Path | None = None,
) -> Discovery:
    """Decides every edge of the graph on these images, on the graph module's device.

    facts: `origins` of model and images, which the circuit carries.
    share: this process's, where several work together.
    folder: where an edge or qkv graph puts most of what it keeps into a file; None keeps it in memory.
    Raises UserError where the images can't be corrupted this way, or the graph can't be taken apart as asked.
    """
    setup = prepare(graph_module, images, settings, share)
    stages, calibration, reference = setup.coarse.stages, setup.calibration, setup.reference
    EdgeGraph(graph_module, whole_mlps(graph_module), settings.granularity)  # refuses a graph before any work
    scores = fisher_scores(stages, calibration, reference, progress=watcher.bar("importance"))
    graph = EdgeGraph(graph_module, group_paths(stages, scores, settings.paths), settings.granularity)
    watcher.say(f"the {settings.granularity} graph has {len(graph.edges()):,} edges")
    run = _Discovery(graph_module, graph, calibration, reference, scores, settings, journal, watcher, folder)
    decisions = run.decide()
    removed = [decision.edge for decision in decisions if not decision.kept]
    figures = fidelity(
        graph,
        removed,
        reference,
        calibration.clean,
        calibration.labels,
        calibration.share,
        divergence=calibration.divergence,
    )
    details: Details = {"fidelity": figures}
    if settings.method == "eap-acdc":
        details["calibration"] = calibration_of(decisions, settings.tau)
    circuit = Circuit(tuple(decisions), figures["kl"], settings.to_json(), facts, details)
    return Discovery(circuit, graph, calibration, reference, setup.constants)


@dataclass(frozen=True)
class _Discovery:
    """One run of a method."""

    graph_module: GraphModule
    graph: EdgeGraph
    calibration: Calibration
    reference: Reference
    units: Mapping[str, Tensor]  #: the Fisher information of every head and neuron
    settings: Settings
    journal: Journal
    watcher: Watcher
    folder: Path | None

    def decide(self) -> list[Decision]:
        settings = self.settings
        if settings.method in RANKING:
            report = self.watcher.bar(settings.method)
            return self._rank(score_edges(self.graph, self.calibration, self.reference, settings, report))
        if settings.method == EDGE_PRUNING:
            return learn(self.graph_module, self.graph, self.calibration, self.reference, self.settings, self.watcher)
        limits = Limits(settings.tau, settings.max_kl)
        order = self._order() if settings.method == "acdc" else None
        # A process that has no room for its file must tell the others.
        engine = on_each(self.calibration.share, self._engine)
        if order is not None:
            return acdc(engine, order, limits, self.journal, self._progress())
        return eap_acdc(engine, limits, self.journal, settings.seed, self._progress())

    def _engine(self) -> Engine:
        if self.graph.reads_stream:
            return HeadEngine(self.graph, self.calibration, self.reference)
        return ReaderEngine(self.graph, self.calibration, self.reference, self.folder)

    def _rank(self, scores: dict[str, float]) -> list[Decision]:
        if self.settings.remove is None:
            return below(self.graph, scores, self.settings.tau)
        return least(self.graph, scores, self.settings.remove, *_size(self.graph_module, self.calibration))

    def _order(self) -> Order:
        if self.settings.order != "attribution":
            return {"reverse": reverse, "forward": forward}[self.settings.order]
        if self.graph.reads_stream:
            return partial(by_attribution, stream_scores(self.graph, self.units))
        report = self.watcher.bar("attribution")
        return partial(by_attribution, fisher(self.graph, self.calibration, self.reference, progress=report))

    def _progress(self) -> Callable[[Decision], None]:
        report, total = self.watcher.bar(self.settings.method), len(self.graph.edges())
        done, removed, name = 0, 0, WORDS[self.settings.task].divergence
        kl = 0.0

        def progress(decision: Decision) -> None:
            nonlocal done, removed, kl
            done += 1
            if not decision.kept:
                removed, kl = removed + 1, decision.kl or kl
            self.watcher.detail(f"{decision.edge.name}: {removed:,} removed, {name} {kl:.4f}")
            report(done, total)

        return progress


def learn(
    graph_module: GraphModule,
    graph: EdgeGraph,
    calibration: Calibration,
    reference: Reference,
    settings: Settings,
    watcher: Watcher,
) -> list[Decision]:
    """Edge pruning from the start that the settings name: decisions from the edge that closes first to the last."""
    edges = graph.edges()
    start = dict.fromkeys((edge.name for edge in edges), 0.0)
    if settings.gate_start != "equal":
        asked = replace(settings, method=settings.gate_start)
        start = score_edges(graph, calibration, reference, asked, watcher.bar(asked.method))
    report, last = watcher.bar(EDGE_PRUNING), Step(0, 0.0, 0.0, 0.0)

    def progress(step: Step) -> None:
        nonlocal last
        last = step
        watcher.detail(f"KL {step.kl:.4f}, {step.removed:.1%} of {step.target:.1%} removed")
        report(step.done, settings.gate_steps)

    shares, attributions = removed_by(graph, *_size(graph_module, calibration)), [start[edge.name] for edge in edges]
    decisions = edge_pruning(graph, calibration, reference, settings, shares, attributions, progress)
    if abs(last.removed - last.target) > _MISSED:
        watcher.say(f"training closed {last.removed:.1%} and not {last.target:.1%}: give more `gate_steps`")
    return decisions


def _size(graph_module: GraphModule, calibration: Calibration) -> tuple[int, int]:
    """The model's tokens where the stream begins, and its FLOPs."""
    pixels = calibration.clean[:2]
    return tokens_of(graph_module, pixels), measure_cost(graph_module, pixels.shape[1:]).flops

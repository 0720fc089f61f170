"""Discovery from images to circuit: references, groups of neurons, the scorer, and what the result depends on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from vitfx.ablation import make_reference
from vitfx.acdc import Journal, Limits, acdc
from vitfx.circuit import Circuit, Decision
from vitfx.corruption import corrupt
from vitfx.edge_graph import EdgeGraph
from vitfx.image_set import Images
from vitfx.importance import fisher_scores, group_paths, writer_scores
from vitfx.progress import Watcher
from vitfx.settings import Settings
from vitfx.stages import Reference, read_stages
from vitfx.version import VERSION
from vitfx.weights import fingerprint


@dataclass(frozen=True)
class Discovery:
    """circuit: the result. graph: the edge graph that it is one of. constants: what artifacts replace the dead with,
    None for zero ablation."""

    circuit: Circuit
    graph: EdgeGraph
    constants: Reference | None


class NoJournal:
    """Remembers nothing."""

    def recall(self, edge: object) -> None:
        return None

    def record(self, decision: Decision) -> None:
        pass


def origins(graph_module: GraphModule, images: Images) -> dict[str, str]:
    """What a circuit was found on: versions, and sha256 of the weights and of the calibration images' pixels."""
    pixels = hashlib.sha256(images.pixels.contiguous().numpy().tobytes())
    labels = b"" if images.labels is None else images.labels.numpy().tobytes()
    pixels.update(labels)
    return {
        "vitfx": VERSION,
        "torch": torch.__version__,
        "model": fingerprint(graph_module.state_dict()),
        "images": pixels.hexdigest(),
    }


def journal_key(settings: Settings, facts: dict[str, str], device: torch.device) -> str:
    """sha256 of everything that decisions depend on."""
    record: dict[str, Any] = {"settings": settings.to_json(), "origins": facts, "device": device.type}
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def discover(
    graph_module: GraphModule,
    images: Images,
    settings: Settings,
    facts: dict[str, str],
    journal: Journal,
    watcher: Watcher,
) -> Discovery:
    """Scores every edge of the head graph on these images, on the graph module's device.

    facts: their `origins`, which the circuit carries.
    Raises UserError where the corruption can't be made of these images.
    """
    device = next(graph_module.parameters()).device
    clean = images.pixels.to(device)
    corrupted = corrupt(images, settings.corruption, settings.seed).to(device)
    stages = read_stages(graph_module)
    whole = {
        stage.name: [list(range(stage.sublayer.units))]
        for stage in stages
        if stage.sublayer is not None and stage.sublayer.kind == "neuron"
    }
    coarse = EdgeGraph(graph_module, whole)
    reference = make_reference(coarse, corrupted, settings.ablation)
    scores = fisher_scores(stages, clean, reference, seed=settings.seed, progress=watcher.bar("importance"))
    graph = EdgeGraph(graph_module, group_paths(stages, scores, settings.paths))
    decisions = _search(graph, clean, reference, scores, settings, journal, watcher)
    kl = next((one.kl for one in reversed(decisions) if not one.kept), 0.0)
    circuit = Circuit(tuple(decisions), kl, {**settings.to_json(), "granularity": "head"}, facts)
    return Discovery(circuit, graph, _constants(coarse, corrupted, reference, settings))


def _search(
    graph: EdgeGraph,
    clean: Tensor,
    reference: Reference,
    scores: dict[str, Tensor],
    settings: Settings,
    journal: Journal,
    watcher: Watcher,
) -> list[Decision]:
    report = watcher.bar(settings.method)
    done = removed = 0
    kl = 0.0

    def progress(decision: Decision) -> None:
        nonlocal done, removed, kl
        done += 1
        if not decision.kept:
            removed, kl = removed + 1, decision.kl
        watcher.detail(f"{decision.edge.writer.name}: {removed} removed, KL {kl:.4f}")
        report(done, len(graph.writers))

    limits = Limits(settings.tau, settings.max_kl)
    return acdc(graph, clean, reference, writer_scores(graph, scores), limits, journal, progress)


def _constants(graph: EdgeGraph, corrupted: Tensor, reference: Reference, settings: Settings) -> Reference | None:
    if settings.ablation == "zero":
        return None
    return make_reference(graph, corrupted, "mean") if settings.ablation == "resample" else reference

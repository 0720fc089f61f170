"""What the benchmarks run on: a model with its images, and for those of discovery its graph and references as well."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.fx import GraphModule

from vitfx.circuits.circuit import Circuit
from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.discovery.basis.protocol import Engine
from vitfx.discovery.basis.settings import Settings
from vitfx.discovery.engines.head_engine import HeadEngine
from vitfx.discovery.engines.reader_engine import ReaderEngine
from vitfx.discovery.methods.acdc import Order, by_attribution
from vitfx.discovery.methods.attribution import fisher
from vitfx.discovery.methods.unit_importance import fisher_scores, group_paths, stream_scores
from vitfx.discovery.replay import paths_of
from vitfx.discovery.run import Setup, origins, prepare
from vitfx.graph.trace import at_rest, to_canonical
from vitfx.images.image_set import Images, ImageSet
from vitfx.images.splits import Splits
from vitfx.models.checkpoint import LoadedModel, load_model
from vitfx.runs.inputs import count_logits, open_splits
from vitfx.support.errors import UserError
from vitfx.support.progress import Watcher


@dataclass(frozen=True)
class Opened:
    """A model and its images."""

    source: str  #: as the user gave the model
    model: LoadedModel
    splits: Splits
    sample: ImageSet  #: the calibration images, not decoded
    images: Images  #: the same, decoded
    seed: int

    def evaluation(self, count: int) -> ImageSet:
        """So many evaluation images, or all there are."""
        return self.splits.evaluation.sample(min(count, len(self.splits.evaluation)), self.seed)


def open_model_and_data(model: str, data: str | None, samples: int, seed: int, watcher: Watcher) -> Opened:
    """data: None for what the model names. samples: calibration images. Raises UserError where they can't be used."""
    loaded = load_model(model)
    source = data or loaded.data
    if source is None:
        raise UserError(f"{model} does not name its data: pass images with --data, a folder, .npz or digits")
    loaded, splits = open_splits(loaded, source, partial(count_logits, loaded))
    sample = splits.calibration.sample(samples, seed)
    return Opened(model, loaded, splits, sample, sample.load(watcher.bar("loading")), seed)


@dataclass(frozen=True)
class Subject:
    """What a benchmark of discovery runs on."""

    opened: Opened
    graph_module: GraphModule  #: canonical, on the device
    setup: Setup
    graph: EdgeGraph
    facts: dict[str, str]  #: see `vitfx.discovery.run.origins`
    units: Mapping[str, Tensor]  #: each unit's Fisher score; empty where a circuit gave the groups

    def engine(self) -> Engine:
        engine = HeadEngine if self.graph.reads_stream else ReaderEngine
        return engine(self.graph, self.setup.calibration, self.setup.reference)

    def order(self) -> Order:
        """The least attributed first, the default of `vitfx.discovery.run`."""
        if self.graph.reads_stream:
            return partial(by_attribution, stream_scores(self.graph, self.units))
        return partial(by_attribution, fisher(self.graph, self.setup.calibration, self.setup.reference))


def open_subject(
    model: str,
    data: str | None,
    settings: Settings,
    device: torch.device,
    watcher: Watcher,
    circuit: Circuit | None = None,
) -> Subject:
    """circuit: gives the neurons' groups; without one they are found as discovery finds them.

    Raises UserError where model or data can't be used, or the circuit is not theirs.
    """
    opened = open_model_and_data(model, data, settings.samples, settings.seed, watcher)
    images = opened.images
    graph_module = to_canonical(at_rest(opened.model.module), images.pixels[:2]).graph_module.to(device)
    facts = origins(graph_module, images)
    if circuit is not None and any(circuit.origins.get(name) != facts[name] for name in ("model", "images")):
        raise UserError("--circuit was found on another model or other images: give those that it was found on")
    setup = prepare(graph_module, images, settings)
    scores: dict[str, Tensor] = {}
    if circuit is None:
        watcher.say("grouping neurons")
        scores = fisher_scores(setup.coarse.stages, setup.calibration, setup.reference)
        paths = group_paths(setup.coarse.stages, scores, settings.paths)
    else:
        paths = paths_of(circuit, setup)
    graph = EdgeGraph(graph_module, paths, settings.granularity)
    watcher.say(f"the {settings.granularity} graph has {len(graph.edges()):,} edges")
    return Subject(opened, graph_module, setup, graph, facts, scores)

"""What the benchmarks of discovery run on: a model as a graph, its calibration images, references and edge graph."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path

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
from vitfx.images.splits import Splits, open_data
from vitfx.models.checkpoint import LoadedModel, load_model
from vitfx.support.errors import UserError
from vitfx.support.progress import Watcher


@dataclass(frozen=True)
class Subject:
    """sample: the calibration images, undecoded; images: decoded. graph_module: canonical, on the device.
    facts: see `vitfx.discovery.run.origins`. units: each unit's Fisher score; empty where a circuit gave the groups."""

    model: LoadedModel
    splits: Splits
    sample: ImageSet
    images: Images
    graph_module: GraphModule
    setup: Setup
    graph: EdgeGraph
    facts: dict[str, str]
    units: Mapping[str, Tensor]

    def engine(self) -> Engine:
        kind = HeadEngine if self.graph.reads_stream else ReaderEngine
        return kind(self.graph, self.setup.calibration, self.setup.reference)

    def order(self) -> Order:
        """The least attributed first, as `vitfx.discovery.run` has it by default."""
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
    """circuit: what the neurons' groups are taken from; without one they are found as discovery finds them.

    Raises UserError where model or data can't be used, or the circuit is of others.
    """
    loaded = load_model(model)
    source = data or loaded.data
    if source is None:
        raise UserError(f"{model} does not name its data: pass images with --data, a folder, .npz or digits")
    splits = open_data(source, loaded.preprocess, loaded.classes)
    sample = splits.calibration.sample(settings.samples, settings.seed)
    images = sample.load(watcher.bar("loading"))
    graph_module = to_canonical(at_rest(loaded.module), images.pixels[:2]).graph_module.to(device)
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
    return Subject(loaded, splits, sample, images, graph_module, setup, graph, facts, scores)


def settings_of(circuit: Circuit) -> Settings:
    """What a circuit was found with. Raises UserError where it does not say."""
    record = dict(circuit.settings)
    if record.get("max_kl") is None:
        record["max_kl"] = float("inf")
    try:
        return Settings(**{one.name: record[one.name] for one in fields(Settings)})
    except KeyError as error:
        raise UserError(f"--circuit does not say its {error.args[0]}: give one that this vitfx found") from error


def check_out(path: Path, option: str = "out") -> None:
    """Raises UserError where what the option names can't be written, before it takes hours to find."""
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"--{option} {path} can't be written: give it a file in a folder that is there and is yours")

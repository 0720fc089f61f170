"""A circuit from a file, on the model and the images that it was found on: what discovery gives, without its work."""

from __future__ import annotations

from collections.abc import Mapping

from torch.fx import GraphModule

from vitfx.circuits.circuit import Circuit
from vitfx.circuits.edge_graph import EdgeGraph, Paths
from vitfx.discovery.basis.settings import Settings
from vitfx.discovery.run import Discovery, Setup, prepare
from vitfx.images.image_set import Images
from vitfx.support.errors import UserError


def replay(circuit: Circuit, graph_module: GraphModule, images: Images, facts: Mapping[str, str]) -> Discovery:
    """The edge graph, the reference and the constants of a circuit, worked out anew from its settings.

    graph_module: on the device to use. images: its calibration images. facts: their `origins`.
    Raises UserError where they are not what the circuit was found on.
    """
    if circuit.origins.get("model") != facts["model"]:
        raise UserError("the circuit was found on another model's weights: give that model, or discover this one's")
    if circuit.origins.get("images") != facts["images"]:
        raise UserError(
            "the circuit was found on other calibration images than its settings choose here: give the same --data, or "
            "discover again"
        )
    settings = Settings.from_json(circuit.settings)
    setup = prepare(graph_module, images, settings)
    try:
        graph = EdgeGraph(graph_module, paths_of(circuit, setup), settings.granularity)
    except (KeyError, ValueError) as error:
        raise UserError(f"the circuit does not fit the model's graph ({error}): discover again") from error
    decided = [one.edge for one in circuit.decisions]
    if len(decided) != len(graph.edges()) or set(decided) != set(graph.edges()):
        raise UserError(
            f"the circuit decides {len(decided):,} edges and not each of the graph's {len(graph.edges()):,} once: "
            "discover again"
        )
    return Discovery(circuit, graph, setup.calibration, setup.reference, setup.constants)


def paths_of(circuit: Circuit, setup: Setup) -> Paths:
    """The groups of neurons that the circuit's writers are."""
    mlps = {
        stage.name for stage in setup.coarse.stages if stage.sublayer is not None and stage.sublayer.kind == "neuron"
    }
    writers = {one.edge.writer for one in circuit.decisions if one.edge.writer.sublayer in mlps}
    paths: dict[str, list[list[int]]] = {}
    for writer in sorted(writers, key=lambda one: (one.sublayer, one.index or 0)):
        paths.setdefault(writer.sublayer, []).append(list(writer.units))
    return paths

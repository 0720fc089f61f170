"""A circuit from a file, on the model and images that it was found on: what its discovery gave, without the work."""

from __future__ import annotations

from collections.abc import Mapping

from torch.fx import GraphModule

from vitfx.circuits.circuit import Circuit
from vitfx.circuits.edge_graph import EdgeGraph, Paths
from vitfx.discovery.basis.settings import Settings
from vitfx.discovery.run import Discovery, Setup, prepare
from vitfx.graph.stages import sublayers_of
from vitfx.images.image_set import Images
from vitfx.support.errors import UserError


def replay(circuit: Circuit, graph_module: GraphModule, images: Images, facts: Mapping[str, str]) -> Discovery:
    """The edge graph, the reference and the constants of a circuit, computed again from its settings.

    graph_module: on the device to use.
    images: the circuit's calibration images.
    facts: `origins` of both.
    Raises UserError where they are not those that the circuit was found on.
    """
    if circuit.origins.get("model") != facts["model"]:
        raise UserError("the circuit was found on another model's weights: give that model, or discover this one's")
    if circuit.origins.get("images") != facts["images"]:
        raise UserError(
            "the circuit was found on other calibration images than its settings choose here: give the same ones, or "
            "discover again"
        )
    settings = Settings.from_json(circuit.settings)
    setup = prepare(graph_module, images, settings)
    try:
        graph = EdgeGraph(graph_module, paths_of(circuit, setup), settings.granularity)
    except (KeyError, ValueError) as error:
        raise UserError(f"the circuit does not fit the model's graph ({error}): discover again") from error
    decided = [decision.edge for decision in circuit.decisions]
    if len(decided) != len(graph.edges()) or set(decided) != set(graph.edges()):
        raise UserError(
            f"the circuit decides {len(decided):,} edges and not each of the graph's {len(graph.edges()):,} once: "
            "discover again"
        )
    return Discovery(circuit, graph, setup.calibration, setup.reference, setup.constants)


def paths_of(circuit: Circuit, setup: Setup) -> Paths:
    """The groups of neurons that the circuit's MLP paths are."""
    mlps = {name for name, module in sublayers_of(setup.coarse.stages).items() if module.kind == "neuron"}
    writers = {decision.edge.writer for decision in circuit.decisions if decision.edge.writer.sublayer in mlps}
    paths: dict[str, list[list[int]]] = {}
    for writer in sorted(writers, key=lambda writer: (writer.sublayer, writer.index or 0)):
        paths.setdefault(writer.sublayer, []).append(list(writer.units))
    return paths

"""The direct implementation that attributions are held against: every edge apart, by loops, differentiated by torch.

One image at a time, each reader with a copy of the stream of its own, each head computed by itself.
"""

from dataclasses import replace

import torch

from passes.dialect import Attention
from tests.support.checks import canonical
from tests.support.families import images
from vitfx.circuits.circuit import LOGITS, Edge, Reader
from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.discovery.basis.ablation import make_reference
from vitfx.discovery.basis.calibration import calibrate
from vitfx.images.image_set import Images
from vitfx.support.processes import Alone

GRANULARITIES = ("block", "head", "edge", "qkv")


def make_graph(granularity, family="vitfx"):
    graph_module = canonical(family)
    with torch.no_grad():
        # Sharper than random weights are, so that edges differ in what they matter.
        for parameter in graph_module.parameters():
            parameter.mul_(1.3)
    hidden = {f"m{index}": graph_module.get_submodule(f"m{index}").units for index in range(3)}
    paths = {name: [range(0, count, 2), range(1, count, 2)] for name, count in hidden.items()}
    return EdgeGraph(graph_module, paths, granularity)


def make_calibration(count=5, share=None, labels=True):
    found = Images(images(count), torch.arange(count) % 7, tuple(map(str, range(count))))
    calibration = calibrate(found, "swap", 0, torch.device("cpu"), share or Alone())
    return replace(
        calibration,
        clean=calibration.clean.double(),
        corrupted=calibration.corrupted.double(),
        labels=calibration.labels if labels else None,
    )


def make_inputs(granularity, ablation="mean", family="vitfx", labels=True):
    graph, calibration = make_graph(granularity, family), make_calibration(labels=labels)
    return graph, calibration, make_reference(graph, calibration.corrupted, ablation)


def one_image(reference, index):
    """The reference of one image, with an axis for images."""
    return {name: value[index : index + 1] if value.dim() == 3 else value for name, value in reference.items()}


def embedding(graph, pixels):
    for stage in graph.stages[: graph.first]:
        pixels = stage(pixels)
    return pixels


def run(graph, stream, see, nudge=lambda reader, norm, stream, written: 0):
    """Logits of a run from the embedding on, and what each writer added.

    see: (edge, what its writer adds) -> what its reader is to see of it. nudge: (a sublayer's reader, its norm, what it
    reads, what each writer has added) -> what is added behind its norm.
    """
    embed, behind, read = graph.writers[0], graph.reads_stream, stream
    written = {embed: stream}
    stream = see(Edge(embed), stream) if behind else stream

    def seen(reader, total):
        for writer in [] if behind else graph.parents(reader):
            total = total + see(Edge(writer, reader), written[writer]) - written[writer]
        return total

    def normed(reader, norm, stream):
        read = seen(reader, stream)
        return norm(read) + nudge(reader, norm, read, written)

    for index, stage in enumerate(graph.stages[graph.first :], graph.first):
        if index == graph.last + 1:
            stream = seen(Reader(LOGITS), stream)
        if stage.sublayer is None:
            stream = stage(stream)
            continue
        # An MLP beside an attention reads what that one has read.
        read = read if stage.joins else stream
        inner = _inner(graph, stage, lambda reader, norm=stage.norm, read=read: normed(reader, norm, read))
        total = stream if stage.sublayer.out.bias is None else stream + stage.sublayer.out.bias
        for writer in graph.writers:
            if writer.sublayer == stage.name:
                units = [unit * stage.sublayer.channels for unit in writer.units]
                columns = [unit + channel for unit in units for channel in range(stage.sublayer.channels)]
                written[writer] = inner[..., columns] @ stage.sublayer.out.weight[:, columns].T
                total = total + (see(Edge(writer), written[writer]) if behind else written[writer])
        stream = total
    return stream, written


def _inner(graph, stage, normed):
    module = stage.sublayer
    if not isinstance(module, Attention):
        return module.inner(normed(Reader(stage.name)))
    heads = []
    for head in range(module.units):
        projected = []
        for part, linear in (("q", module.q), ("k", module.k), ("v", module.v)):
            reader = Reader(stage.name, head, part if graph.granularity == "qkv" else None)
            size = linear.out_features // module.units
            rows = slice(head * size, (head + 1) * size)
            value = normed(reader) @ linear.weight[rows].T
            projected.append(value if linear.bias is None else value + linear.bias[rows])
        q, k, v = projected
        core = module.core.of_heads([head])
        heads.append(core.pattern(q.unsqueeze(1), k.unsqueeze(1)).squeeze(1) @ v)
    return torch.cat(heads, dim=-1)


def reference_of(graph, reference, writer):
    """What stands in for a writer, as it enters the stream."""
    value = reference[writer.sublayer]
    if not writer.units:
        return value
    module = next(stage.sublayer for stage in graph.stages if stage.name == writer.sublayer)
    kept = torch.zeros(module.units, dtype=torch.float64)
    kept[list(writer.units)] = 1
    return (value * kept.repeat_interleave(module.channels)) @ module.out.weight.T


def gate_gradients(graph, pixels, reference, metric):
    """∂metric/∂gate of each edge by name, for one image: gate 1 shows the writer, gate 0 its reference."""
    gates = {edge: torch.ones((), dtype=torch.float64, requires_grad=True) for edge in graph.edges()}

    def see(edge, value):
        gate = gates[edge]
        return gate * value + (1 - gate) * reference_of(graph, reference, edge.writer)

    logits, _ = run(graph, embedding(graph, pixels), see)
    found = torch.autograd.grad(metric(logits), list(gates.values()))
    return {edge.name: float(value) for edge, value in zip(gates, found, strict=True)}


def per_image(graph, calibration, reference, metric):
    """Gate gradients of all images: {edge's name: (n,)}. metric: (image's index, logits (1, K)) -> scalar."""
    rows = [
        gate_gradients(
            graph,
            calibration.clean[index : index + 1],
            one_image(reference, index),
            lambda logits, index=index: metric(index, logits),
        )
        for index in range(len(calibration.clean))
    ]
    return {name: torch.tensor([row[name] for row in rows], dtype=torch.float64) for name in rows[0]}


def direct_metric(name, graph, calibration):
    """The metric of (image's index, logits), written out."""
    with torch.no_grad():
        clean, corrupted = graph.run(calibration.clean), graph.run(calibration.corrupted)
    if name == "kl":
        p = clean.softmax(-1)
        return lambda index, logits: (p[index] * (p[index].log() - logits[0].softmax(-1).log())).sum()
    if name == "loss":
        labels = clean.argmax(-1) if calibration.labels is None else calibration.labels
        return lambda index, logits: -logits[0].softmax(-1)[labels[index]].log()

    def difference(index, logits):
        ranked = clean[index].argsort(descending=True).tolist()
        other = int(corrupted[index].argmax())
        return logits[0, ranked[0]] - logits[0, ranked[1] if other == ranked[0] else other]

    return difference


def assert_scores(got, expected, tolerance=1e-6):
    """Edge by edge, relative; edges that are nothing beside the largest are held to it instead."""
    assert list(got) == list(expected)
    largest = max(expected.values())
    assert largest > 0
    for name, value in expected.items():
        assert abs(got[name] - value) <= tolerance * max(value, 1e-6 * largest), name

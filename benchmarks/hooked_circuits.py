"""Edges taken out of a ViT, and attributed, as the papers say and with nothing but hooks: what vitfx is held against.

An edge writer → reader is removed by giving the reader, and it alone, the stream with the writer's mean in place of its
output (Wang et al. 2023, "Interpretability in the Wild", arXiv:2211.00593, path patching; Goldowsky-Dill et al. 2023,
arXiv:2304.05969). Attribution multiplies that difference with the gradient of what the reader reads, from one backward
pass (EAP: Syed et al. 2024, arXiv:2310.10348, equation 2), or with its mean on the way from the ablated embedding
(EAP-IG: Hanna et al. 2024, arXiv:2403.17806, equation 3).

Shapes as in `benchmarks.hooked`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.hooked import EMBEDDING, FINAL, Hook, HookedViT, point
from vitfx.circuits.circuit import EMBED, LOGITS, PARTS, Edge, Reader, Writer

_Values = dict[str, Tensor]
_ABLATION_BATCH, _ATTRIBUTION_BATCH = 32, 4


class HookedCircuits:
    """Removes and attributes edges of the edge or the qkv graph, with mean ablation.

    clean, corrupted: images (N, C, H, W). labels: int64 (N,).
    """

    def __init__(self, vit: HookedViT, clean: Tensor, corrupted: Tensor, labels: Tensor) -> None:
        self.vit, self.clean, self.labels = vit, clean, labels
        self.layers = len(vit.twin.vit.layers)
        self._batches = [slice(start, start + _ABLATION_BATCH) for start in range(0, len(clean), _ABLATION_BATCH)]
        with torch.no_grad():
            self._means = self._mean_values(corrupted)
            runs = [self._recorded(clean[images]) for images in self._batches]
        self._logits, self._values = [logits for logits, _ in runs], [values for _, values in runs]

    @torch.no_grad()
    def effect(self, edge: Edge) -> float:
        """D_KL(whole ‖ without this edge) in nats an image, float64."""
        total = 0.0
        for images, logits, values in zip(self._batches, self._logits, self._values, strict=True):
            change = self._change(edge.writer, values)
            hooks = self._removing(edge.reader, change, values)
            without = F.log_softmax(self.vit.run(self.clean[images], hooks).double(), dim=-1)
            whole = F.log_softmax(logits.double(), dim=-1)
            total += float((whole.exp() * (whole - without)).sum())
        return total / len(self.clean)

    def attributions(self, edges: Sequence[Edge], steps: int = 1) -> dict[str, float]:
        """By the edge's name, what removing it does to the cross-entropy with the labels, to first order: EAP, and with
        more steps than one EAP-IG."""
        writers = list(dict.fromkeys(edge.writer for edge in edges))
        readers = list(dict.fromkeys(edge.reader.name for edge in edges))
        totals = torch.zeros(len(writers), len(readers), dtype=torch.float64)
        for start in range(0, len(self.clean), _ATTRIBUTION_BATCH):
            images = slice(start, start + _ATTRIBUTION_BATCH)
            with torch.no_grad():
                _, values = self._recorded(self.clean[images])
                changes = torch.stack([self._change(writer, values).flatten() for writer in writers])
            gradients = self._gradients(images, values[EMBEDDING], steps)
            totals += (changes @ torch.stack([gradients[reader].flatten() for reader in readers]).T).double()
        rows, columns = ({name: at for at, name in enumerate(names)} for names in (writers, readers))
        means = (totals / len(self.clean)).tolist()
        return {edge.name: means[rows[edge.writer]][columns[edge.reader.name]] for edge in edges}

    def _recorded(self, pixels: Tensor) -> tuple[Tensor, _Values]:
        """The logits, and by point what writers write and heads read."""
        names = [EMBEDDING]
        names += [point(layer, kind) for layer in range(self.layers) for kind in ("stream", "heads", "neurons")]
        values: _Values = {}
        logits = self.vit.run(pixels, {name: partial(_keep, values, name) for name in names})
        return logits, values

    def _mean_values(self, pixels: Tensor) -> _Values:
        """Over images and tokens; the embedding's by token."""
        runs = [self._recorded(batch)[1] for batch in pixels.split(_ABLATION_BATCH)]
        whole = {name: torch.cat([values[name] for values in runs]) for name in runs[0]}
        return {name: value.mean(dim=0 if name == EMBEDDING else (0, 1)) for name, value in whole.items()}

    def _change(self, writer: Writer, values: _Values) -> Tensor:
        """The writer's mean less what it adds to the stream, (n, T, D)."""
        if writer.sublayer == EMBED:
            return self._missing(EMBEDDING, values)
        layer = self.vit.twin.vit.layers[(index := _layer(writer.sublayer))]
        if writer.sublayer.startswith("a"):
            (head,) = writer.units
            name = point(index, "heads")
            width = self._means[name].shape[-1]
            columns: Tensor = layer.attention.o_proj.weight[:, head * width : (head + 1) * width]
            return self._missing(name, values)[..., head, :] @ columns.T
        name, units = point(index, "neurons"), list(writer.units)
        rows: Tensor = layer.mlp.fc2.weight[:, units].T
        return self._missing(name, values)[..., units] @ rows

    def _missing(self, name: str, values: _Values) -> Tensor:
        return self._means[name] - values[name]

    def _removing(self, reader: Reader, change: Tensor, values: _Values) -> dict[str, Hook]:
        """Hooks that change what this reader reads."""
        if reader.sublayer == LOGITS:
            return {FINAL: lambda stream: stream + change}
        index = _layer(reader.sublayer)
        if reader.head is None:
            return {point(index, "mlp"): lambda stream: stream + change}
        read = values[point(index, "stream")] + change
        parts = PARTS if reader.part is None else (reader.part,)
        return {point(index, part): self._head_reads(index, part, reader.head, read) for part in parts}

    def _head_reads(self, index: int, part: str, head: int, read: Tensor) -> Hook:
        def replace(value: Tensor) -> Tensor:
            value = value.clone()
            value[:, :, head] = self.project(index, part, head, read)
            return value

        return replace

    def project(self, index: int, part: str, head: int, stream: Tensor) -> Tensor:
        """A head's queries, keys or values (n, T, d). It calls no module, whose hooks would be called as well."""
        layer = self.vit.twin.vit.layers[index]
        norm = layer.layernorm_before
        linear = getattr(layer.attention, f"{part}_proj")
        width = linear.out_features // self.vit.twin.config.num_attention_heads
        rows = slice(head * width, (head + 1) * width)
        bias = None if linear.bias is None else linear.bias[rows]
        read = F.layer_norm(stream, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        return F.linear(read, linear.weight[rows], bias)

    def _gradients(self, images: slice, embedding: Tensor, steps: int) -> _Values:
        """∂ loss / ∂ what each reader reads, (n, T, D), by the reader's name; their mean over the steps."""
        means: _Values = {}
        for step in range(1, steps + 1):
            forks = _Forks(self, embedding)
            start = torch.lerp(self._means[EMBEDDING].expand_as(embedding), embedding, step / steps)
            logits = self.vit.run(self.clean[images], {EMBEDDING: partial(_give, start), **forks.hooks})
            loss = F.cross_entropy(logits.double(), self.labels[images], reduction="sum")
            for name, gradient in forks.gradients(loss).items():
                means[name] = means.get(name, 0.0) + gradient / steps
        return means


class _Forks:
    """Gives every reader its own copy of the stream, by adding a zero to it whose gradient is then the reader's."""

    def __init__(self, circuits: HookedCircuits, like: Tensor) -> None:
        self.circuits, self.like = circuits, like
        self.zeros: _Values = {}
        self.streams: _Values = {}
        self.hooks: dict[str, Hook] = {FINAL: self._added(LOGITS)}
        for index in range(circuits.layers):
            stream = point(index, "stream")
            self.hooks[stream] = partial(_keep, self.streams, stream, detach=False)
            self.hooks[point(index, "mlp")] = self._added(f"m{index}")
            for part in PARTS:
                self.hooks[point(index, part)] = partial(self._apart, index, part)

    def gradients(self, loss: Tensor) -> _Values:
        """By reader, of both graphs."""
        gradients = dict(zip(self.zeros, torch.autograd.grad(loss, list(self.zeros.values())), strict=True))
        for name in [name for name in gradients if name.endswith(".q")]:
            head = name.removesuffix(".q")
            gradients[head] = sum((gradients[f"{head}.{part}"] for part in PARTS), torch.zeros(()))
        return gradients

    def _zero(self, name: str) -> Tensor:
        self.zeros[name] = torch.zeros_like(self.like, requires_grad=True)
        return self.zeros[name]

    def _added(self, name: str) -> Hook:
        return lambda stream: stream + self._zero(name)

    def _apart(self, index: int, part: str, value: Tensor) -> Tensor:
        stream, heads = self.streams[point(index, "stream")], []
        for head in range(value.shape[2]):
            read = stream + self._zero(f"a{index}.h{head}.{part}")
            heads.append(self.circuits.project(index, part, head, read))
        return torch.stack(heads, dim=2)


def _give(value: Tensor, _: Tensor) -> Tensor:
    return value


def _keep(values: _Values, name: str, value: Tensor, *, detach: bool = True) -> None:
    values[name] = value.detach() if detach else value


def _layer(sublayer: str) -> int:
    return int(sublayer[1:])

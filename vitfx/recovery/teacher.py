"""The unpruned model's answers, computed once where the same image comes again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from passes.merging import MergeTokens
from passes.stream import module_of, read_sites
from vitfx.support.files import writing
from vitfx.training.precision import autocast

MOST_BYTES = 2**30
"""Answers that take more bytes than this are not kept."""


class Answers:
    """Logits by place, each computed when it is first asked for.

    path: the file that keeps them, None for memory
    known: bool (places,), which are there already. A resumed run passes it as it was when its state was saved: rows
        written later are computed again, in the same batches as in an uninterrupted run
    """

    def __init__(self, places: int, classes: int, path: Path | None, known: Tensor | None = None) -> None:
        self.known = torch.zeros(places, dtype=torch.bool) if known is None else known.clone()
        self._path = path
        if path is None:
            self._values = torch.zeros(places, classes)
            return
        with writing(path):
            if known is None or not path.exists() or path.stat().st_size != 4 * places * classes:
                self.known.zero_()
                path.unlink(missing_ok=True)
            mode: Literal["r+", "w+"] = "r+" if path.exists() else "w+"
            self._values = torch.from_numpy(np.memmap(str(path), np.float32, mode, shape=(places, classes)))

    def __call__(self, places: Tensor, ask: Callable[[Tensor], Tensor]) -> Tensor:
        """Logits (B, K) on the CPU. ask: computes those at the given positions in `places`, which are missing."""
        missing = (~self.known[places]).nonzero().flatten()
        if len(missing):
            self._values[places[missing]] = ask(missing)
            self.known[places[missing]] = True
        return self._values[places]

    def discard(self) -> None:
        if self._path is not None:
            self._path.unlink(missing_ok=True)


@dataclass(eq=False)
class Teacher:
    """The model that is learnt from."""

    module: GraphModule  #: on the device, in eval mode, never changed
    tapped: TappedModel | None  #: the same with its streams, where hidden states are taught
    answers: Answers | None  #: kept logits, None where no image comes twice in the same form
    device: torch.device
    precision: str
    shape: tuple[int, ...]  #: of an image's answer

    def logits(self, images: Tensor, places: Tensor | None) -> Tensor:
        """(B, C, H, W), on the CPU, -> answers (B, K) or (B, …) on the device."""
        if self.answers is None or places is None:
            return self.ask(images)
        kept = self.answers(places, lambda missing: self.ask(images[missing]).reshape(len(missing), -1).cpu())
        return kept.reshape(len(kept), *self.shape).to(self.device)

    @torch.no_grad()
    def ask(self, images: Tensor) -> Tensor:
        with autocast(self.device, self.precision):
            logits: Tensor = self.module(images.to(self.device))
        return logits.float()

    @torch.no_grad()
    def streams(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Logits and streams, computed anew each time."""
        assert self.tapped is not None
        with autocast(self.device, self.precision):
            logits, streams = self.tapped(images.to(self.device))
        return logits.float(), streams


def frozen(module: GraphModule) -> GraphModule:
    """The module in eval mode, without gradients."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    module.eval()
    return module


def fits(data_images: int, variants: int | None, classes: int) -> bool:
    """Whether the answers to all variants of all images are few enough to keep. variants: None for too many."""
    return variants is not None and 4 * data_images * variants * classes <= MOST_BYTES


def shared_sublayers(student: GraphModule, teacher: GraphModule) -> tuple[str, ...]:
    """The sublayers that both have, in the order of the stream; not those of a student whose tokens all merge."""
    protected = protected_tokens(student)
    ours = {site.name for site in read_sites(student)} - {name for name, count in protected.items() if not count}
    return tuple(site.name for site in read_sites(teacher) if site.name in ours)


def protected_tokens(student: GraphModule) -> dict[str, int]:
    """Of each sublayer behind a merge of tokens, how many of the first tokens never merge: both models have these."""
    counts, protected = {}, None
    for site in read_sites(student):
        if protected is not None:
            counts[site.name] = protected
        merge = None if site.merge is None else module_of(student, site.merge)
        protected = merge.protected if isinstance(merge, MergeTokens) else protected
    return counts


class TappedModel(nn.Module):
    """(B, C, H, W) -> logits (B, K), and the streams (B, T, D) behind the named sublayers, by the graph's modules."""

    def __init__(self, graph_module: GraphModule, names: Sequence[str], first: Mapping[str, int] | None = None) -> None:
        """first: by name, of how many of the first tokens; of all where it has no entry."""
        super().__init__()
        self._first = [(first or {}).get(name) for name in names]
        adds = {site.name: site.add for site in read_sites(graph_module)}
        graph, placed = Graph(), dict[Node, Node]()
        logits = graph.graph_copy(graph_module.graph, placed)
        graph.output((logits, tuple(placed[adds[name]] for name in names)))
        self.graph_module = GraphModule(graph_module, graph)

    def forward(self, pixels: Tensor) -> tuple[Any, tuple[Tensor, ...]]:
        logits, streams = self.graph_module(pixels)
        return logits, tuple(stream[:, :first] for stream, first in zip(streams, self._first, strict=True))

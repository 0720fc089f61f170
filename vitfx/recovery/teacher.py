"""The unpruned model's answers, computed once where the same image comes again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from passes.merging import MergeTokens, RestoreTokens, average_groups
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
            logits, streams, _ = self.tapped(images.to(self.device))
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
    """The sublayers that both have, in the order of the stream, but none behind a merge of the teacher's own tokens:
    the student's there may stand for others."""
    ours, names = {site.name for site in read_sites(student)}, []
    for site in read_sites(teacher):
        if site.name in ours:
            names.append(site.name)
        if site.merge is not None:
            break
    return tuple(names)


class TappedModel(nn.Module):
    """(B, C, H, W) -> logits (B, K), the streams (B, T, D) behind the named sublayers, by the graph's modules, and for
    each the groups int64 (B, tokens of old): which of the T stands for each, None where none has merged."""

    def __init__(self, graph_module: GraphModule, names: Sequence[str]) -> None:
        super().__init__()
        sites = {site.add: site.name for site in read_sites(graph_module)}
        graph, placed = Graph(), dict[Node, Node]()
        logits = graph.graph_copy(graph_module.graph, placed)
        # A list, since the modules are the graph's already.
        self._merges: list[MergeTokens] = []
        adds, behind, keys, merged = {}, {}, [], 0
        for node in graph_module.graph.nodes:
            module = module_of(graph_module, node)
            if isinstance(module, MergeTokens):
                self._merges.append(module)
                keys.append(placed[node.args[1]])
                merged = len(self._merges)
            elif isinstance(module, RestoreTokens):
                merged = 0
            elif node in sites:
                adds[sites[node]], behind[sites[node]] = placed[node], merged
        self._behind = [behind[name] for name in names]
        graph.output((logits, tuple(adds[name] for name in names), tuple(keys)))
        self.graph_module = GraphModule(graph_module, graph)

    def forward(self, pixels: Tensor) -> tuple[Any, tuple[Tensor, ...], tuple[Tensor | None, ...]]:
        logits, streams, keys = self.graph_module(pixels)
        groups: list[Tensor | None] = [None]
        for merge, key in zip(self._merges, keys, strict=True):
            groups.append(merge.follow(key, groups[-1]))
        return logits, streams, tuple(groups[merged] for merged in self._behind)


def like_merged(
    theirs: Sequence[Tensor], ours: Sequence[Tensor], groups: Sequence[Tensor | None]
) -> tuple[Tensor, ...]:
    """Streams of whole tokens, averaged over the groups that stand for them in other streams."""
    return tuple(
        stream if group is None else average_groups(stream.float(), group, merged.shape[1])
        for stream, merged, group in zip(theirs, ours, groups, strict=True)
    )

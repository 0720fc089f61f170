"""What the unpruned model answers, asked once where the same image comes again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node

from passes.stream import read_sites
from vitfx.support.files import writing
from vitfx.training.precision import autocast

MOST_BYTES = 2**30
"""More answers than this are not kept."""


class Answers:
    """Logits by place, each worked out when it is first asked for. known: bool (places,), which are there.

    path: the file that they are kept in, None for memory. A run that goes on gives `known` as it was when its state was
    saved: rows that were written later are worked out again, in the batches that an unbroken run has them in.
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
        """Logits (B, K) on the CPU. ask: given the positions in `places` whose answers are missing, gives them."""
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
    """module: on the device, in eval mode, changed by nothing. tapped: the same with its streams, where hidden states
    are taught. answers: kept logits, None where images never come again as they were."""

    module: GraphModule
    tapped: Tapped | None
    answers: Answers | None
    device: torch.device
    precision: str

    def logits(self, images: Tensor, places: Tensor | None) -> Tensor:
        """(B, C, H, W), on the CPU, -> (B, K) on the device."""
        if self.answers is None or places is None:
            return self.ask(images)
        return self.answers(places, lambda missing: self.ask(images[missing]).cpu()).to(self.device)

    @torch.no_grad()
    def ask(self, images: Tensor) -> Tensor:
        with autocast(self.device, self.precision):
            logits = self.module(images.to(self.device))
        return logits.float()

    @torch.no_grad()
    def streams(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Logits and streams, asked anew each time."""
        assert self.tapped is not None
        with autocast(self.device, self.precision):
            logits, streams = self.tapped(images.to(self.device))
        return logits.float(), streams


def frozen(module: GraphModule) -> GraphModule:
    """In eval mode, without gradients."""
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    module.eval()
    return module


def keep(data_images: int, variants: int | None, classes: int) -> bool:
    """Whether the answers to all images in so many variants are few enough to be kept; None: too many variants."""
    return variants is not None and 4 * data_images * variants * classes <= MOST_BYTES


def shared_sublayers(student: GraphModule, teacher: GraphModule) -> tuple[str, ...]:
    """The sublayers that both have, in their order."""
    ours = {site.name for site in read_sites(student)}
    return tuple(site.name for site in read_sites(teacher) if site.name in ours)


class Tapped(nn.Module):
    """(B, C, H, W) -> logits (B, K), and the streams (B, T, D) behind the named sublayers, by the graph's modules."""

    def __init__(self, graph_module: GraphModule, names: Sequence[str]) -> None:
        super().__init__()
        adds = {site.name: site.add for site in read_sites(graph_module)}
        graph, placed = Graph(), dict[Node, Node]()
        logits = graph.graph_copy(graph_module.graph, placed)
        graph.output((logits, tuple(placed[adds[name]] for name in names)))
        self.graph_module = GraphModule(graph_module, graph)

    def forward(self, pixels: Tensor) -> tuple[Any, tuple[Tensor, ...]]:
        logits, streams = self.graph_module(pixels)
        return logits, streams

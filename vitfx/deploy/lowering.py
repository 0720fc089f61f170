"""From a canonical graph to the one that is exported: exact rewrites, each on or off by its name, each proved."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from passes.absorb_keys import AbsorbKeys
from passes.base import Pass, PassError, run_passes
from passes.fold_biases import FoldBiases
from passes.fold_norms import FoldNorms
from passes.fold_patches import FoldPatches
from passes.fold_scales import FoldScales
from passes.narrow_to_cls import NarrowToCls
from passes.pack_qkv import PackQkv
from passes.plain_pixels import PlainPixels
from vitfx.graph.verify import VerificationError
from vitfx.images.preprocess import Preprocess
from vitfx.support.errors import UserError

TOLERANCE = 1e-10
_PROVED_IMAGES = 8

_PASSES: dict[str, Callable[[Tensor], Pass]] = {
    "fold_patches": FoldPatches,
    "fold_norms": lambda _: FoldNorms(),
    "fold_scales": lambda _: FoldScales(),
    "fold_biases": lambda _: FoldBiases(),
    "narrow_to_cls": NarrowToCls,
    "absorb_keys": lambda _: AbsorbKeys(),
    "pack_qkv": lambda _: PackQkv(),
}
"""In the order in which they are made; each takes example pixels (2 or more, C, H, W)."""

REWRITES = tuple(_PASSES)
NEEDS = {"absorb_keys": ("narrow_to_cls",)}
"""What a rewrite finds nothing to do without."""


@dataclass(frozen=True)
class Step:
    """One rewrite. changed: whether it found anything to do. error: greatest |after − before| of the logits by the
    greatest |before|, in float64."""

    name: str
    changed: bool
    error: float
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Lowered:
    """graph_module: for export, in eval mode; not to be trained or pruned. error: as a step's, of all together."""

    graph_module: GraphModule
    steps: tuple[Step, ...]
    error: float

    @property
    def applied(self) -> tuple[str, ...]:
        return tuple(step.name for step in self.steps if step.changed)


def lower(
    graph_module: GraphModule, names: Collection[str], pixels: Tensor, plain: Preprocess | None = None
) -> Lowered:
    """Carries the named rewrites out on a copy, and proves each in float64, up to `TOLERANCE`.

    graph_module: canonical, on the CPU. pixels: (2 or more, C, H, W), what the proof is run on. plain: whose mean and
    standard deviation the lowered graph does itself; it then takes pixels of 0 to 1.
    Raises UserError where mean and standard deviation can't be folded, VerificationError where a proof fails.
    """
    pixels = pixels[:_PROVED_IMAGES].cpu()
    exact, example = copy.deepcopy(graph_module).double(), pixels.double()
    current = graph_module
    expected = first = _logits(exact, example)
    steps = []
    for name, made in _chosen(names, pixels, plain):
        try:
            result = run_passes(exact, [made])
        except PassError as error:
            raise UserError(f"{name} can't be made ({error}): leave it out") from error
        if plain is not None and isinstance(made, PlainPixels):
            example = plain_pixels(example, plain)
        exact, current = result.graph_module, run_passes(current, [made]).graph_module
        logits = _logits(exact, example)
        steps.append(Step(name, result.changed, _error(logits, expected), result.notes))
        if not steps[-1].error < TOLERANCE:
            raise VerificationError(f"{name} changes the logits by {steps[-1].error:.1e} of their greatest")
        expected = logits
    return Lowered(current.eval(), tuple(steps), _error(expected, first))


def _chosen(names: Collection[str], pixels: Tensor, plain: Preprocess | None) -> Sequence[tuple[str, Pass]]:
    chosen = [(name, make(pixels)) for name, make in _PASSES.items() if name in names]
    if plain is not None:
        if "fold_patches" not in names:
            raise UserError("--plain-pixels needs the rewrite fold_patches: name it with --rewrites")
        chosen.insert(1, ("plain_pixels", PlainPixels(plain.mean, plain.std)))
    return chosen


class Normalising(nn.Module):
    """Takes pixels of 0 to 1 and gives them to a module normalised: what a model of plain pixels is compared with."""

    def __init__(self, module: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.module, self.preprocess = module, preprocess

    def forward(self, pixels: Tensor) -> Tensor:
        return self.module(normalised_pixels(pixels, self.preprocess))


def plain_pixels(pixels: Tensor, preprocess: Preprocess) -> Tensor:
    """Normalised pixels (B, C, H, W) as they were before mean and standard deviation: 0 to 1."""
    mean, std = _columns(preprocess, pixels)
    return pixels * std + mean


def normalised_pixels(pixels: Tensor, preprocess: Preprocess) -> Tensor:
    """The reverse: pixels of 0 to 1 with mean and standard deviation taken out."""
    mean, std = _columns(preprocess, pixels)
    return (pixels - mean) / std


def _columns(preprocess: Preprocess, pixels: Tensor) -> tuple[Tensor, Tensor]:
    mean, std = (pixels.new_tensor(values).view(1, -1, 1, 1) for values in (preprocess.mean, preprocess.std))
    return mean, std


@torch.no_grad()
def _logits(graph_module: GraphModule, pixels: Tensor) -> Tensor:
    return graph_module(pixels)


def _error(got: Tensor, expected: Tensor) -> float:
    return float((got - expected).abs().max() / expected.abs().max())

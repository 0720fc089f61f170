"""From a canonical graph to the one that is exported: exact rewrites, each named, each proved."""

from __future__ import annotations

import copy
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from passes.absorb_keys import AbsorbKeys
from passes.base import Pass, PassError, PassResult, RequirementError, run_passes
from passes.fold_biases import FoldBiases
from passes.fold_norms import FoldNorms
from passes.fold_patches import FoldPatches
from passes.fold_scales import FoldScales
from passes.narrow_to_cls import NarrowToCls
from passes.pack_qkv import PackQkv
from passes.plain_pixels import PlainPixels
from passes.printer import node_count
from vitfx.graph.verify import VerificationError
from vitfx.images.preprocess import Preprocess
from vitfx.support.errors import UserError

TOLERANCE = 1e-10
_PROVED_IMAGES = 4


@dataclass(frozen=True)
class PassOptions:
    """What the constructors of passes are given."""

    example: Tensor  #: pixels (2 or more, C, H, W)
    preprocess: Preprocess | None = None  #: whose mean and standard deviation go into the graph


def _plain_pixels(options: PassOptions) -> PlainPixels:
    if options.preprocess is None:
        raise UserError("plain_pixels needs the mean and standard deviation of the model's images")
    return PlainPixels(options.preprocess.mean, options.preprocess.std)


PASSES: dict[str, Callable[[PassOptions], Pass]] = {
    FoldPatches.name: lambda options: FoldPatches(options.example),
    PlainPixels.name: _plain_pixels,
    FoldNorms.name: lambda _: FoldNorms(),
    FoldScales.name: lambda _: FoldScales(),
    FoldBiases.name: lambda _: FoldBiases(),
    NarrowToCls.name: lambda options: NarrowToCls(options.example),
    AbsorbKeys.name: lambda _: AbsorbKeys(),
    PackQkv.name: lambda _: PackQkv(),
}
"""The passes that can be named, in the order in which exports run them."""

REWRITES = tuple(name for name in PASSES if name != PlainPixels.name)
"""Those that leave the graph's input as it is."""
NEEDS = {AbsorbKeys.name: (NarrowToCls.name,)}
"""The rewrites without which a rewrite finds nothing to do."""


@dataclass(frozen=True)
class ProvedPass:
    """What a pass did, and its proof."""

    name: str
    changed: bool  #: whether it found anything to do
    error: float  #: greatest |after − before| of the logits divided by the greatest |before|, in float64
    notes: tuple[str, ...]
    nodes: tuple[int, int]  #: of the graph and the graphs that it calls, before and after


@dataclass(frozen=True)
class Lowered:
    """A graph for export."""

    graph_module: GraphModule  #: in eval mode; can't be trained or pruned
    steps: tuple[ProvedPass, ...]
    error: float  #: as a step's, of all together

    @property
    def applied(self) -> tuple[str, ...]:
        return tuple(step.name for step in self.steps if step.changed)


def lower(
    graph_module: GraphModule, names: Collection[str], pixels: Tensor, plain: Preprocess | None = None
) -> Lowered:
    """Runs the named rewrites in the order of `PASSES`, as `run_proved` does.

    plain: whose mean and standard deviation the lowered graph does itself; it then takes pixels of 0 to 1.
    """
    if plain is not None and FoldPatches.name not in names:
        raise UserError("`plain_pixels` needs the rewrite fold_patches: name it with `rewrites`")
    wanted = {*names, *((PlainPixels.name,) if plain is not None else ())}
    return run_proved(graph_module, [name for name in PASSES if name in wanted], PassOptions(pixels, plain))


def run_proved(
    graph_module: GraphModule,
    names: Sequence[str],
    options: PassOptions,
    after: Callable[[Pass, PassResult], None] | None = None,
) -> Lowered:
    """Runs the named passes in this order on a copy, and proves each in float64, up to `TOLERANCE`.

    graph_module: canonical, on the CPU.
    options: the proofs are run on its example.
    after: is called behind every pass.
    Raises UserError where a pass fails, VerificationError where a proof does.
    """
    options = replace(options, example=options.example[:_PROVED_IMAGES].cpu())
    # In turn, so that the copy in float64 is gone when the graph itself is copied.
    steps, error = _prove(graph_module, names, options)
    passes = [PASSES[name](options) for name in names]
    current = run_passes(graph_module, passes, after).graph_module if passes else graph_module
    return Lowered(current.eval(), steps, error)


def _prove(
    graph_module: GraphModule, names: Sequence[str], options: PassOptions
) -> tuple[tuple[ProvedPass, ...], float]:
    """The proofs one by one, and the error of all together."""
    exact, example = copy.deepcopy(graph_module).double(), options.example.double()
    expected = first = _logits(exact, example)
    steps = []
    for name in names:
        each, before = PASSES[name](options), node_count(exact)
        try:
            result = run_passes(exact, [each], consume=True)
        except PassError as error:
            advice = "name it earlier" if isinstance(error, RequirementError) else "leave it out"
            raise UserError(f"{error}: {advice}") from error
        if options.preprocess is not None and isinstance(each, PlainPixels):
            example = plain_pixels(example, options.preprocess)
        exact = result.graph_module
        logits = _logits(exact, example)
        nodes = before, node_count(exact)
        steps.append(ProvedPass(name, result.changed, _error(logits, expected), result.notes, nodes))
        if not steps[-1].error < TOLERANCE:
            raise VerificationError(f"{name} changes the logits by {steps[-1].error:.1e} of their greatest")
        expected = logits
    return tuple(steps), _error(expected, first)


class Normalising(nn.Module):
    """Takes pixels of 0 to 1 and normalises them for a module: what a model of plain pixels is compared with."""

    def __init__(self, module: nn.Module, preprocess: Preprocess) -> None:
        super().__init__()
        self.module, self.preprocess = module, preprocess

    def forward(self, pixels: Tensor) -> Tensor:
        logits: Tensor = self.module(normalised_pixels(pixels, self.preprocess))
        return logits


def plain_pixels(pixels: Tensor, preprocess: Preprocess) -> Tensor:
    """Normalised pixels (B, C, H, W) as they were before mean and standard deviation: 0 to 1."""
    mean, std = _columns(preprocess, pixels)
    return pixels * std + mean


def normalised_pixels(pixels: Tensor, preprocess: Preprocess) -> Tensor:
    """The reverse: pixels of 0 to 1, normalised by mean and standard deviation."""
    mean, std = _columns(preprocess, pixels)
    return (pixels - mean) / std


def _columns(preprocess: Preprocess, pixels: Tensor) -> tuple[Tensor, Tensor]:
    mean, std = (pixels.new_tensor(values).view(1, -1, 1, 1) for values in (preprocess.mean, preprocess.std))
    return mean, std


@torch.no_grad()
def _logits(graph_module: GraphModule, pixels: Tensor) -> Tensor:
    logits: Tensor = graph_module(pixels)
    return logits


def _error(logits: Tensor, expected: Tensor) -> float:
    return float((logits - expected).abs().max() / expected.abs().max())

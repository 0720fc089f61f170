"""What the rest of the model makes of a changed stream, on the block and the head graph.

Discovery goes from the output backwards. Everything before the sublayer at hand is still the whole model, so its
streams are computed once. Everything behind is decided, so what was removed there is not computed at all: those
sublayers run with the units they keep, plus what stands in for the others, a constant or, with resampling, a value for
each image.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from passes.delete_heads import DeleteHeads
from passes.delete_mlp_paths import DeleteMlpPaths
from passes.dialect import Sublayer
from passes.plan import channels_of
from vitfx.discovery.basis.protocol import Chosen
from vitfx.graph.stages import Stage, contribution, of_images


@dataclass(frozen=True)
class DecidedStage:
    """A stage behind the sublayer at hand."""

    stage: Stage
    small: Sublayer | None  #: with the units that it keeps; None where it keeps none, or is no sublayer
    #: What stands in for the removed units, in the stream: (D,), (T, D) or (N, T, D). Of a sublayer that keeps no unit,
    #: its bias as well. None where nothing was removed.
    added: Tensor | None

    def __call__(self, stream: Tensor, images: Chosen) -> Tensor:
        """stream: (n, T, D), of these images."""
        if self.stage.sublayer is None:
            return self.stage(stream)
        total = carried = self.stage.carried(stream)
        if self.small is not None:
            total = total + self.small.out(self.stage.inner(stream, self.small))
        total = total if self.added is None else total + of_images(self.added, images)
        return self.stage.forked(total, carried)


def decide(stage: Stage, removed: Sequence[int], reference: Tensor | None) -> DecidedStage:
    """The stage without its removed units. reference: of its inner channels, (E,), (T, E) or (N, T, E)."""
    module = stage.sublayer
    if module is None or not removed:
        return DecidedStage(stage, module, None)
    assert reference is not None
    gone = set(removed)
    kept = [unit for unit in range(module.units) if unit not in gone]
    added = contribution(module, removed, reference)
    if kept:
        if module.inner_norm is not None:
            return DecidedStage(stage, _silenced(module, removed), added)
        shrink = DeleteHeads if module.kind == "head" else DeleteMlpPaths
        return DecidedStage(stage, shrink.shrunk(module, kept), added)
    return DecidedStage(stage, None, added if module.out.bias is None else added + module.out.bias)


@torch.no_grad()
def _silenced(module: Sublayer, removed: Sequence[int]) -> Sublayer:
    """The sublayer computing all of its units, because a norm couples them, and writing those that are left."""
    small = copy.deepcopy(module)
    small.out.weight[:, channels_of(removed, module.channels).to(small.out.weight.device)] = 0
    return small


def run_decided(decided: Sequence[DecidedStage], stream: Tensor, images: Chosen) -> Tensor:
    """The logits that the decided stages compute from a stream."""
    for stage in decided:
        stream = stage(stream, images)
    return stream

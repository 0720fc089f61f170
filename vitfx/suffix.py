"""The hot loop of discovery: what the rest of the model makes of a changed stream.

Scoring runs from the output backwards. All that lies before the sublayer at hand is the whole model, so its streams are
computed once; all that lies behind has been decided, so what was removed there is not computed at all: those sublayers
run with the units they keep, plus the constant (or, resampling, each image's own value) of those they lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from passes.delete_heads import DeleteHeads
from passes.delete_mlp_paths import DeleteMlpPaths
from vitfx.stages import Stage, contribution


@dataclass(frozen=True)
class DecidedStage:
    """A stage behind the sublayer at hand.

    small: what it keeps; None where nothing is kept. added: what its removed units are replaced with, in the stream:
    (D,), (T, D) or (N, T, D), None where nothing was removed. A stage that keeps nothing has its bias in `added` too.
    """

    stage: Stage
    small: nn.Module | None
    added: Tensor | None

    def __call__(self, stream: Tensor, images: slice) -> Tensor:
        """stream: (n, T, D) of the images `images`."""
        result = stream
        if self.small is not None:
            read = stream if self.stage.norm is None else self.stage.norm(stream)
            result = self.small(read) if self.stage.norm is None else stream + self.small(read)
        if self.added is None:
            return result
        return result + (self.added[images] if self.added.dim() == 3 else self.added)


def decide(stage: Stage, removed: Sequence[int], reference: Tensor | None) -> DecidedStage:
    """The stage once its removed units are settled; reference: its inner channels, (E,), (T, E) or (N, T, E)."""
    module = stage.sublayer
    if module is None or not removed:
        return DecidedStage(stage, stage.module, None)
    assert reference is not None
    gone = set(removed)
    kept = [unit for unit in range(module.units) if unit not in gone]
    added = contribution(module, removed, reference)
    if kept:
        shrink = DeleteHeads if module.kind == "head" else DeleteMlpPaths
        return DecidedStage(stage, shrink.shrunk(module, kept), added)
    return DecidedStage(stage, None, added if module.out.bias is None else added + module.out.bias)


@torch.no_grad()
def run_decided(decided: Sequence[DecidedStage], stream: Tensor, images: slice) -> Tensor:
    """The logits that the decided stages make of a stream."""
    for stage in decided:
        stream = stage(stream, images)
    return stream

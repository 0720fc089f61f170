"""What the rest of the model makes of a changed stream, on the block and the head graph.

Scoring runs from the output backwards. All that lies before the sublayer at hand is the whole model, so its streams are
computed once; all that lies behind has been decided, so what was removed there is not computed at all: those sublayers
run with the units they keep, plus the constant (or, resampling, each image's own value) of those they lost.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from passes.delete_heads import DeleteHeads
from passes.delete_mlp_paths import DeleteMlpPaths
from passes.dialect import Sublayer
from vitfx.discovery.basis.protocol import Chosen
from vitfx.graph.stages import Stage, contribution, of_images


@dataclass(frozen=True)
class DecidedStage:
    """A stage behind the sublayer at hand.

    small: what a sublayer keeps; None where nothing is kept, or the stage is no sublayer. added: what its removed units
    are replaced with, in the stream: (D,), (T, D) or (N, T, D), None where nothing was removed. A sublayer that keeps
    nothing has its bias in `added` too.
    """

    stage: Stage
    small: Sublayer | None
    added: Tensor | None

    def __call__(self, stream: Tensor, images: Chosen) -> Tensor:
        """stream: (n, T, D) of the images `images`."""
        if self.stage.sublayer is None:
            return self.stage(stream)
        result = self.stage.carried(stream)
        if self.small is not None:
            result = result + self.small.out(self.stage.inner(stream, self.small))
        return result if self.added is None else result + of_images(self.added, images)


def decide(stage: Stage, removed: Sequence[int], reference: Tensor | None) -> DecidedStage:
    """The stage once its removed units are settled; reference: its inner channels, (E,), (T, E) or (N, T, E)."""
    module = stage.sublayer
    if module is None or not removed:
        return DecidedStage(stage, module, None)
    assert reference is not None
    gone = set(removed)
    kept = [unit for unit in range(module.units) if unit not in gone]
    added = contribution(module, removed, reference)
    if kept:
        shrink = DeleteHeads if module.kind == "head" else DeleteMlpPaths
        return DecidedStage(stage, shrink.shrunk(module, kept), added)
    return DecidedStage(stage, None, added if module.out.bias is None else added + module.out.bias)


def run_decided(decided: Sequence[DecidedStage], stream: Tensor, images: Chosen) -> Tensor:
    """The logits that the decided stages make of a stream."""
    for stage in decided:
        stream = stage(stream, images)
    return stream

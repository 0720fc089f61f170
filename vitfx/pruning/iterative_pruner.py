"""From a price to a pruned model: what is worth least goes, survivors are refitted, and all is surveyed anew.

A one-shot cut trusts scores of the whole model for a model that has lost a third of it. Here a cut is made in rounds:
each is surveyed on the model as the round before left it, and chooses anew among all units, so that what turned out
to be missed comes back, and what turned out to be worth less goes in its place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.fx import GraphModule

from passes.plan import DeletionPlan, SublayerDeletion
from vitfx.graph.divergence import kl_divergence
from vitfx.graph.stages import read_stages, sublayers_of
from vitfx.graph.verify import rewrite
from vitfx.pruning.budget import select
from vitfx.pruning.compensation import Compensator
from vitfx.pruning.cost_model import Price
from vitfx.pruning.removal_order import eliminate
from vitfx.pruning.unit_worth import mend, survey
from vitfx.support.errors import UserError
from vitfx.support.progress import Watcher

_BATCH = 32


@dataclass(frozen=True)
class State:
    """A pruned model. plan: with refits. kept: how many units of each sublayer. costs: nats an image, predicted, of
    what is deleted of each."""

    plan: DeletionPlan
    kept: Mapping[str, int]
    costs: Mapping[str, float]


@dataclass(frozen=True)
class Standing:
    """How a pruned model stands on the held-out images. kl: nats an image from the original. drop: points of top-1
    lost, None without labels. error: the standard error of that, None where fewer than two images are held out."""

    kl: float
    drop: float | None
    error: float | None


class Pursuit:
    """Prunes one model to ever smaller prices, on one set of images.

    Of the images (N, C, H, W) the last quarter is held out from all fitting and scoring. The first `scored` of the
    others tell what units are worth, and are what survivors are refitted on between cuts; in the end that is done on
    all of the others. align: the widths that MLPs are left with are multiples of it.
    """

    def __init__(
        self,
        original: GraphModule,
        pixels: Tensor,
        labels: Tensor | None,
        *,
        scored: int,
        seed: int,
        watcher: Watcher,
        align: int = 1,
    ) -> None:
        held = max(1, len(pixels) // 4)
        self.original, self.watcher, self.seed = original, watcher, seed
        self.fitted, self.held_out = pixels[:-held], pixels[-held:]
        self.labels = None if labels is None else labels[-held:]
        self.scored = self.fitted[:scored]
        self.stages = read_stages(original)
        self.modules = sublayers_of(self.stages)
        self.multiples = {name: align for name, module in self.modules.items() if module.kind != "head"}
        self.expected = _logits(original, self.held_out)
        self._quick = Compensator(original, self.scored, keep=True)
        self.rounds = 0

    def start(self) -> State:
        """The whole model."""
        return State(DeletionPlan(), {name: module.units for name, module in self.modules.items()}, {})

    def cut(self, state: State, price: Price, most: float) -> State:
        """The model surveyed anew and brought to a total of `most`. Raises UserError where no model is that cheap."""
        found = survey(
            self.stages,
            mend(self.stages, state.plan),
            self.scored,
            seed=self.seed + self.rounds,
            progress=self.watcher.bar("scoring"),
        )
        self.rounds += 1
        paths = {
            name: eliminate(one.fisher, one.covariance, self.modules[name].out.weight.detach().cpu())
            for name, one in found.items()
        }
        counts = select(paths, price, most, self.multiples)
        if counts is None:
            least = price.least
            raise UserError(
                f"even without any attention and MLP the model has {least / price.whole:.0%} of its {price.unit}, "
                f"more than the {most / price.whole:.0%} asked for: ask for less"
            )
        gone = {name: tuple(sorted(paths[name].units[:count])) for name, count in counts.items() if count}
        plan = DeletionPlan(
            tuple(
                SublayerDeletion(name, module.kind, gone[name], module.units)
                for name, module in self.modules.items()
                if name in gone
            )
        )
        refitted = self._quick(plan, self.watcher.bar("refitting")).plan if gone else plan
        kept = {name: module.units - len(gone.get(name, ())) for name, module in self.modules.items()}
        return State(refitted, kept, {name: float(paths[name].costs[count]) for name, count in counts.items()})

    def finish(self, state: State) -> State:
        """The same deletions, survivors refitted on all images that are for it."""
        if not state.plan.deletions or len(self.scored) == len(self.fitted):
            return state
        bare = DeletionPlan(tuple(replace(one, constant=None) for one in state.plan.deletions))
        refitted = Compensator(self.original, self.fitted)(bare, self.watcher.bar("refitting on all images")).plan
        return replace(state, plan=refitted)

    def standing(self, state: State) -> Standing:
        logits = _logits(rewrite(self.original, state.plan).graph_module.eval(), self.held_out)
        kl = float(kl_divergence(self.expected, logits).mean())
        if self.labels is None:
            return Standing(kl, None, None)
        labels = self.labels.to(logits.device)
        lost = [(one.argmax(-1) == labels).double() for one in (self.expected, logits)]
        difference = 100 * (lost[0] - lost[1])
        error = float(difference.std()) / len(difference) ** 0.5 if len(difference) > 1 else None
        return Standing(kl, float(difference.mean()), error)


@torch.no_grad()
def _logits(graph_module: GraphModule, pixels: Tensor) -> Tensor:
    return torch.cat([graph_module(batch) for batch in pixels.split(_BATCH)])

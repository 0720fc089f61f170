"""Edge pruning: a circuit of a given size, learned by gradient descent (Bhaskar et al. 2024, "Finding Transformer
Circuits with Edge Pruning", arXiv:2406.16778, section 3).

Every edge has a gate, drawn anew for each batch of images from a hard concrete distribution with its own log α. The
loss is

    D_KL(model ‖ gated model) + λ₁ (t − s) + λ₂ (t − s)²

with s the expected share that the gates remove, and t the share to remove, which rises from 0. Descent trains the log α
and ascent trains λ₁ and λ₂, so that s follows t. In the end as many edges are removed as the distributions expect to
be closed, those of the lowest log α. The model's weights stay as they are.

The paper starts with all gates alike. Here the more an edge is attributed, the wider its gate is open at the start,
which spares most of the paper's steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR

from vitfx.circuits.circuit import LEARNED, Decision
from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.discovery.basis.calibration import Calibration
from vitfx.discovery.basis.settings import Settings
from vitfx.discovery.engines.gated_run import GatedGraph
from vitfx.discovery.methods.edge_gradients import images_at_once
from vitfx.discovery.methods.hard_concrete import probability_open, sample
from vitfx.graph.stages import Reference, in_batches, run_stages

BATCH = 32
"""Images of a step, of all processes together."""
WARM_UP, SETTLE = 0.5, 0.25
"""Of the steps: in the first ones the share to remove rises from 0, in the last ones the learning rate falls to 0."""
START = (2.0, 12.0)
"""log α of the least and of the most attributed edge at the start: nearly all gates are open. So far apart, they close
one after another; gates that start alike all close at the same step."""
MULTIPLIERS = (0.0, 20.0)
"""λ₁ and λ₂ at the start. With λ₂ = 0 they would swing, because λ₁ goes on rising until s has passed t."""
ASCENT = 1.0
"""The learning rate of λ₁ and λ₂."""


@dataclass(frozen=True)
class Step:
    """What is told of each step."""

    done: int
    kl: float  #: mean over the step's images
    removed: float  #: the expected share
    target: float  #: the share to remove by now


def edge_pruning(
    graph: EdgeGraph,
    calibration: Calibration,
    reference: Reference,
    settings: Settings,
    shares: Sequence[float],
    attributions: Sequence[float],
    progress: Callable[[Step], None],
) -> list[Decision]:
    """shares: what removing each edge adds to the share removed; edges that add nothing are kept.
    attributions: of each edge; all equal for the paper's own start. Both are in the order of `graph.edges()`.
    """
    training = _Training(graph, calibration, reference, settings, torch.tensor(shares, dtype=torch.float64))
    log_alpha = training.run(_start(attributions), progress)
    return _binary(graph, log_alpha, training.shares)


def _start(attributions: Sequence[float]) -> Tensor:
    """log α by the rank of the attributions, float64 (E,); equal ones have equal ranks."""
    scores = torch.tensor(attributions, dtype=torch.float64)
    ranks = torch.searchsorted(scores.sort().values, scores).double()
    least, most = START
    return least + (most - least) * ranks / max(1, len(scores) - 1)


def _binary(graph: EdgeGraph, log_alpha: Tensor, shares: Tensor) -> list[Decision]:
    """Removes edges from the lowest log α up, until as much is removed as the gates' distributions expect."""
    opened, order = probability_open(log_alpha), torch.argsort(log_alpha, stable=True)
    expected = float((shares * (1 - opened)).sum())
    ranked = shares[order]
    # To the nearest: an edge goes if no less than half of it is expected to.
    kept = (ranked == 0) | (ranked.cumsum(0) - ranked / 2 > expected)
    edges, scores = graph.edges(), opened.tolist()
    return [
        Decision(edges[at], keep, scores[at], None, LEARNED)
        for at, keep in zip(order.tolist(), kept.tolist(), strict=True)
    ]


class _Training:
    def __init__(
        self, graph: EdgeGraph, calibration: Calibration, reference: Reference, settings: Settings, shares: Tensor
    ) -> None:
        self.calibration, self.settings, self.shares = calibration, settings, shares
        self.gated, self.at_once = GatedGraph(graph, reference), images_at_once(graph, calibration.clean)
        with torch.no_grad():
            self.clean = in_batches(partial(run_stages, graph.stages), calibration.clean, self.at_once)
        self.draws = torch.Generator().manual_seed(settings.seed)

    def run(self, log_alpha: Tensor, progress: Callable[[Step], None]) -> Tensor:
        assert self.settings.remove is not None
        steps, log_alpha = self.settings.gate_steps, log_alpha.clone().requires_grad_()
        multipliers = torch.tensor(MULTIPLIERS, dtype=torch.float64, requires_grad=True)
        descent = torch.optim.Adam([log_alpha], lr=self.settings.learning_rate)
        settling = LambdaLR(descent, lambda step: min(1.0, (1 - step / steps) / SETTLE))
        ascent = torch.optim.SGD([multipliers], lr=ASCENT, maximize=True)
        for step in range(steps):
            target = self.settings.remove * min(1.0, (step + 1) / (WARM_UP * steps))
            gates = sample(log_alpha, torch.rand(log_alpha.shape, dtype=torch.float64, generator=self.draws))
            gates = torch.where(self.shares > 0, gates, torch.ones_like(gates))
            missing = target - (self.shares * (1 - probability_open(log_alpha))).sum()
            kl, by_gates = self._divergence(gates)
            descent.zero_grad()
            ascent.zero_grad()
            penalty = multipliers[0] * missing + multipliers[1] * missing**2
            torch.autograd.backward([gates, penalty], [by_gates, None])
            descent.step()
            ascent.step()
            settling.step()
            progress(Step(step + 1, kl, target - float(missing.detach()), target))
        return log_alpha.detach()

    def _divergence(self, gates: Tensor) -> tuple[float, Tensor]:
        """The mean D_KL of a batch of images drawn from all processes, and its gradient by the gates, float64 (E,)."""
        measure = self.calibration.divergence
        share = self.calibration.share
        # The same draws for all processes, each of which has every world-th image.
        chosen = torch.randperm(self.calibration.total, generator=self.draws)[:BATCH]
        mine = chosen[chosen % share.world == share.rank] // share.world
        kl, gradient = torch.zeros(1, dtype=torch.float64), torch.zeros_like(gates, requires_grad=False)
        for images in mine.to(self.clean.device).split(self.at_once) if len(mine) else ():
            run = self.gated.run(self.calibration.clean[images], gates, images)
            clean = self.clean[images]
            kl += measure(clean, run.logits).sum().cpu()
            gradient += run.back(measure.slope(clean, run.logits).to(run.logits)).double().cpu()
        total = share.sum(torch.cat([kl, gradient])) / len(chosen)
        return float(total[0]), total[1:]

"""What removing edges will cost, predicted at the circuit as it stands.

To second order in the change δ that removals make to what a reader sees,

    D_KL(G‖H − e) − D_KL(G‖H) ≈ ∇D_KL · δ + ½ E_v[(∇(v · z_H) · δ)²],   z_H the logits of H,

the mean over images of a slope, which the whole model does not have and a circuit has, and of KL's own quadratic form,
the Fisher information. v is a probe of it (see `vitfx.discovery.basis.metric.fisher_probes`). δ is the sum of what
each removal changes, at the stream or behind the reader's norm (see `vitfx.discovery.engines.behind_norm`), so that
one forward and two backward passes tell of all sets of edges into a sublayer. All images are looked at: the slope
differs so much from one to the next that half of them often get its sign wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from vitfx.discovery.basis.calibration import Calibration
from vitfx.discovery.basis.forecast import Forecast
from vitfx.discovery.basis.metric import fisher_probes
from vitfx.discovery.basis.protocol import batches
from vitfx.graph.divergence import kl_divergence

BACKWARDS = 8
"""Images run at a time: gradients take more memory than a trial, and what is asked of the system is slow to come."""
PROBES = 1
"""Of the Fisher information, for each image."""


class Tracked(Protocol):
    """A run of some images from what readers see, (..., n, T, D), to the logits, (n, K)."""

    logits: Tensor

    def back(self, cotangent: Tensor) -> Tensor:
        """The gradient of Σ cotangent · logits, (n, K), by what is seen. May be asked again."""


def second_order(
    calibration: Calibration,
    clean: Tensor,
    seen: Callable[[slice], Tensor],
    track: Callable[[Tensor, slice], Tracked],
    along: Callable[[Tensor, Tensor, slice], Tensor],
) -> Forecast:
    """For E edges into one sublayer, from all processes' images.

    clean: the whole model's logits (N, K). seen: what readers see of some images. track: the run from there. along:
    gradients (g, ...) and what is seen -> their products with the change that each edge's removal makes, (g, E, n).
    """
    slopes, scores, divergences = [], [], []
    for images in batches(len(clean), BACKWARDS):
        with torch.no_grad():
            read = seen(images)
        tracked = track(read, images)
        with torch.no_grad():
            divergences.append(kl_divergence(clean[images], tracked.logits).double().cpu())
            slope = F.softmax(tracked.logits.double(), dim=-1) - F.softmax(clean[images].double(), dim=-1)
            probes = fisher_probes(tracked.logits, calibration.draws[images], PROBES)
        gradients = torch.stack([tracked.back(one.to(tracked.logits)) for one in (slope, *probes)])
        with torch.no_grad():
            products = along(gradients, read, images).double().cpu()
        slopes.append(products[0].sum(dim=1))
        scores.append(products[1:].transpose(0, 1).flatten(1))
    slope, score, each = torch.stack(slopes).sum(dim=0), torch.cat(scores, dim=1), torch.cat(divergences)
    order = torch.argsort(each, descending=True, stable=True).tolist()
    kl = float(calibration.mean(each.sum()))
    return Forecast(calibration.mean(slope), calibration.mean(score @ score.T / PROBES), kl, tuple(order))


class ByAutograd:
    """A run whose whole graph is kept."""

    def __init__(self, seen: Tensor, run: Callable[[Tensor], Tensor]) -> None:
        self._seen = seen.detach().requires_grad_()
        with torch.enable_grad():
            self._logits = run(self._seen)
        self.logits = self._logits.detach()

    def back(self, cotangent: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(self._logits, self._seen, cotangent, retain_graph=True)
        return gradient

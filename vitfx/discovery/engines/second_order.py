"""What removing edges will cost, forecast at the circuit as it stands.

To second order in the change δ that removals make to what a reader sees,

    D_KL(G‖H − e) − D_KL(G‖H) ≈ ∇D_KL · δ + ½ E_v[(∇(v · z_H) · δ)²],   z_H the logits of H,

averaged over images: a slope, which is zero for the whole model but not for a circuit, and KL's own quadratic form, the
Fisher information, of which v is a probe (see `vitfx.discovery.basis.metric.fisher_probes`). Other kinds of answers
have their own divergence and its form in KL's place (see `vitfx.graph.divergence`). δ is the sum of what each removal
changes, in the stream or behind the reader's norm (see `vitfx.discovery.engines.behind_norm`). So one forward and two
backward passes cover all sets of edges into a sublayer. They run on all images: the slope varies so much from image to
image that half of them often get its sign wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from vitfx.discovery.basis.calibration import Calibration
from vitfx.discovery.basis.forecast import Forecast
from vitfx.discovery.basis.metric import fisher_probes
from vitfx.discovery.basis.protocol import batches

BACKWARDS = 8
"""Images run at a time: gradients take more memory than a trial, and allocating it is slow."""
PROBES = 1
"""Of the Fisher information of each image."""


class TrackedLogits(Protocol):
    """A run of some images from what readers see, (..., n, T, D), to the logits (n, K)."""

    logits: Tensor

    def back(self, cotangent: Tensor) -> Tensor:
        """The gradient of Σ cotangent · logits by what readers see. May be called more than once."""


def second_order(
    calibration: Calibration,
    clean: Tensor,
    seen: Callable[[slice], Tensor],
    track: Callable[[Tensor, slice], TrackedLogits],
    along: Callable[[Tensor, Tensor, slice], Tensor],
) -> Forecast:
    """The forecast for E edges into one sublayer, from all processes' images.

    clean: the whole model's logits (N, K).
    seen: from some images to what readers see.
    track: from that and the images to the run from there on.
    along: from gradients (g, ...), what readers see and the images to the products of the gradients with the change
        that each edge's removal makes, (g, E, n).
    """
    measure = calibration.divergence
    slopes, scores, divergences = [], [], []
    for images in batches(len(clean), BACKWARDS):
        with torch.no_grad():
            read = seen(images)
        tracked = track(read, images)
        with torch.no_grad():
            divergences.append(measure(clean[images], tracked.logits).double().cpu())
            slope = measure.slope(clean[images], tracked.logits)
            probes = fisher_probes(tracked.logits, calibration.draws[images], PROBES, measure)
        gradients = torch.stack([tracked.back(direction.to(tracked.logits)) for direction in (slope, *probes)])
        with torch.no_grad():
            products = along(gradients, read, images).double().cpu()
        slopes.append(products[0].sum(dim=1))
        scores.append(products[1:].transpose(0, 1).flatten(1))
    score, divergence = torch.cat(scores, dim=1), torch.cat(divergences)
    return Forecast(
        slope=calibration.mean(torch.stack(slopes).sum(dim=0)),
        fisher=calibration.mean(score @ score.T / PROBES),
        kl=float(calibration.mean(divergence.sum())),
        order=tuple(torch.argsort(divergence, descending=True, stable=True).tolist()),
    )


class ByAutograd:
    """A run that keeps its whole autograd graph."""

    def __init__(self, seen: Tensor, run: Callable[[Tensor], Tensor]) -> None:
        self._seen = seen.detach().requires_grad_()
        with torch.enable_grad():
            self._logits = run(self._seen)
        self.logits = self._logits.detach()

    def back(self, cotangent: Tensor) -> Tensor:
        (gradient,) = torch.autograd.grad(self._logits, self._seen, cotangent, retain_graph=True)
        return gradient

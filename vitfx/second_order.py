"""What removing edges will cost, predicted at the circuit as it stands.

To second order in the change δ that removals make to what a reader sees,

    D_KL(G‖H − e) − D_KL(G‖H) ≈ ∇D_KL · δ + ½ E_y[(∇ log p_H(y) · δ)²],   y drawn from H,

the mean over images of a slope, which the whole model does not have and a circuit has, and of KL's own quadratic form,
the Fisher information. δ is the sum of what each removal changes, so that one forward and two backward passes tell of
all sets of a reader's writers. All images are looked at: the slope differs so much from one to the next that half of
them often get its sign wrong.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vitfx.calibration import Calibration
from vitfx.edge_graph import kl_divergence
from vitfx.forecast import Forecast
from vitfx.metric import drawn_from, log_probability
from vitfx.search import batches

Along = Callable[[Tensor], Tensor]
"""A gradient (n, T, D) -> its product with the change that each writer's removal makes, (writers, n)."""


def second_order(
    calibration: Calibration, clean: Tensor, run: Callable[[slice], tuple[Tensor, Tensor, Along]]
) -> Forecast:
    """For the writers of one reader, from all processes' images.

    clean: the whole model's logits (N, K). run: images -> what the reader sees, requiring a gradient; the logits made
    of it; and how to go along a gradient.
    """
    slopes, fishers = [], []
    for images in batches(len(clean)):
        with torch.enable_grad():
            seen, logits, along = run(images)
            divergence = kl_divergence(clean[images], logits)
            log_p = log_probability(drawn_from(logits, calibration.draws[images]))(logits)
            (slope,) = torch.autograd.grad(divergence.sum(), seen, retain_graph=True)
            (score,) = torch.autograd.grad(log_p.sum(), seen)
        with torch.no_grad():
            slopes.append(along(slope).double().sum(dim=1).cpu())
            scores = along(score).double().cpu()
            fishers.append(scores @ scores.T)
    return Forecast(calibration.mean(torch.stack(slopes).sum(dim=0)), calibration.mean(torch.stack(fishers).sum(dim=0)))

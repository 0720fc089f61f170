"""What removing an edge will cost, predicted at the circuit as it stands.

To second order in the change δ that a removal makes to what a reader sees,

    D_KL(G‖H − e) − D_KL(G‖H) ≈ ∇D_KL · δ + ½ E_y[(∇ log p_H(y) · δ)²],   y drawn from H,

the mean over images of a slope, which the whole model does not have and a circuit has, and of KL's own quadratic form,
the Fisher information. One forward and two backward passes give it for all writers of a reader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from vitfx.calibration import Calibration
from vitfx.edge_graph import kl_divergence
from vitfx.metric import drawn_from, log_probability
from vitfx.search import BATCH

IMAGES = 32
"""How many of a process's images a prediction looks at: evenly spread over them."""

Along = Callable[[Tensor], Tensor]
"""A gradient (n, T, D) -> its product with the change that each writer's removal makes, (writers, n)."""


def second_order(
    calibration: Calibration, clean: Tensor, run: Callable[[slice], tuple[Tensor, Tensor, Along]]
) -> Tensor:
    """The prediction for each writer of a reader, in nats an image, float64 (writers,) on the CPU.

    clean: the whole model's logits (N, K). run: images -> what the reader sees, requiring a gradient; the logits made
    of it; and how to go along a gradient.
    """
    total, count = torch.zeros((), dtype=torch.float64), 0
    for images in _spread(len(clean)):
        with torch.enable_grad():
            seen, logits, along = run(images)
            divergence = kl_divergence(clean[images], logits)
            log_p = log_probability(drawn_from(logits, calibration.draws[images]))(logits)
            (slope,) = torch.autograd.grad(divergence.sum(), seen, retain_graph=True)
            (score,) = torch.autograd.grad(log_p.sum(), seen)
        with torch.no_grad():
            change = along(slope).double() + along(score).double().square() / 2
        total = total + change.sum(dim=1).cpu()
        count += len(logits)
    counts = calibration.share.sum(torch.tensor(float(count), dtype=torch.float64))
    return calibration.share.sum(total) / counts


def _spread(count: int) -> Iterator[slice]:
    """Batches that together hold IMAGES of `count` images, evenly spread."""
    step = max(1, count // IMAGES)
    groups = -(-min(count, IMAGES) // BATCH)
    for offset in range(groups):
        yield slice(offset * step, None, step * groups)

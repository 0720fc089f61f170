"""What attributions differentiate: for each image, a number that says how far a run is from the whole model's.

kl: D_KL(clean ‖ run).
loss: cross-entropy with the label, or without labels with the whole model's top-1.
logit-difference: the logit of the whole model's top-1, less that of the corrupted run's top-1; where the two are the
    same class, less that of the whole model's second.

Shapes: n images, K classes.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.discovery.basis.calibration import Calibration
from vitfx.discovery.basis.settings import METRICS
from vitfx.graph.divergence import kl_divergence
from vitfx.support.errors import UserError

Metric = Callable[[Tensor], Tensor]
"""From the logits of a run (n, K) to a number for each image, float64 (n,)."""


def make_metric(name: str, graph: EdgeGraph, calibration: Calibration, images: slice, clean: Tensor) -> Metric:
    """The metric of some of this process's images.

    clean: the whole model's logits on them (n, K). Raises UserError for an unknown name.
    """
    check_metric(name)
    if name == "kl":
        return lambda logits: kl_divergence(clean, logits)
    if name == "loss":
        labels = clean.argmax(dim=-1) if calibration.labels is None else calibration.labels[images]
        return log_probability(labels, sign=-1)
    with torch.no_grad():
        corrupted = graph.run(calibration.corrupted[images]).argmax(dim=-1)
    first, second = clean.topk(2, dim=-1).indices.unbind(dim=-1)
    rival = torch.where(corrupted == first, second, corrupted)
    return lambda logits: (_pick(logits, first) - _pick(logits, rival)).double()


def check_metric(name: str) -> None:
    """Raises UserError for an unknown name."""
    if name not in METRICS:
        raise UserError(f"metric {name!r} is not known: choose one of {', '.join(METRICS)}")


def log_probability(classes: Tensor, sign: int = 1) -> Metric:
    """log p(class | image); with sign −1, the cross-entropy. classes: int64 (n,)."""
    return lambda logits: sign * _pick(F.log_softmax(logits.double(), dim=-1), classes)


def drawn_from(logits: Tensor, draws: Tensor) -> Tensor:
    """A class for each image, drawn from softmax(logits): int64 (n,) on the device of the logits.

    By inverse CDF in float64, so that an image's class depends on its logits and its draw alone.
    draws: uniform in [0, 1), float64 (n,) on the CPU.
    """
    cumulated = F.softmax(logits.detach().cpu().double(), dim=-1).cumsum(dim=-1)
    # Rounding can leave the last sum below 1, and a draw beyond it.
    drawn = torch.searchsorted(cumulated, draws[:, None].contiguous(), right=True)[:, 0].clamp(max=logits.shape[-1] - 1)
    return drawn.to(logits.device)


def fisher_probes(logits: Tensor, draws: Tensor, count: int) -> Tensor:
    """Directions v of the logits, float64 (count, n, K) on their device, for which E[v vᵀ] is the Fisher information of
    each image's prediction, diag p − p pᵀ: v = √p∘s − p(√p · s), with independent random signs s.

    If a class y were drawn from p instead, v = e_y − p, then for confident predictions one image in a hundred would
    carry all the information. Here every image carries some: the standard deviation of (v · g)² is at most √2 times its
    mean.
    draws: uniform in [0, 1), float64 (n,) on the CPU. An image's signs depend on nothing else.
    """
    signs = torch.stack([_signs(draw, count * logits.shape[-1]) for draw in draws.tolist()])
    roots = F.softmax(logits.detach().double(), dim=-1).sqrt()
    signed = roots * torch.unflatten(signs, 1, (count, -1)).transpose(0, 1).to(roots)
    return signed - roots.square() * signed.sum(dim=-1, keepdim=True)


def _signs(draw: float, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(int(draw * 2**53))
    return torch.randint(0, 2, (count,), generator=generator) * 2 - 1


def _pick(values: Tensor, classes: Tensor) -> Tensor:
    return values.gather(1, classes[:, None])[:, 0]

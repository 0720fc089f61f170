"""What attributions differentiate: for each image, a number that says how far a run is from the whole model's.

kl: D_KL(clean ‖ run), or the divergence of another kind of answers.
loss: cross-entropy with the label, or without labels with the whole model's top-1; of `labels` (a kind of
    `vitfx.graph.divergence`) the mean binary cross-entropy, without labels with the whole model's decisions.
logit-difference: of classes, the logit of the whole model's top-1, less that of the corrupted run's top-1; where the
    two are the same class, less that of the whole model's second.

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
from vitfx.graph.divergence import CLASSES, Classes, Divergence, Labels
from vitfx.graph.metrics import loss
from vitfx.support.errors import UserError

Metric = Callable[[Tensor], Tensor]
"""From the logits of a run (n, K) to a number for each image, float64 (n,)."""


def make_metric(name: str, graph: EdgeGraph, calibration: Calibration, images: slice, clean: Tensor) -> Metric:
    """The metric of some of this process's images.

    clean: the whole model's logits on them (n, K). Raises UserError for an unknown name.
    """
    check_metric(name, calibration.divergence.kind)
    if name == "kl":
        return lambda logits: calibration.divergence(clean, logits)
    if name == "loss":
        return _loss(calibration, images, clean)
    with torch.no_grad():
        corrupted = graph.run(calibration.corrupted[images]).argmax(dim=-1)
    first, second = clean.topk(2, dim=-1).indices.unbind(dim=-1)
    rival = torch.where(corrupted == first, second, corrupted)
    return lambda logits: (_pick(logits, first) - _pick(logits, rival)).double()


def check_metric(name: str, task: str = "classes") -> None:
    """Raises UserError for an unknown name, and for a metric that the model's kind of answers does not have."""
    if name not in METRICS:
        raise UserError(f"metric {name!r} is not known: choose one of {', '.join(METRICS)}")
    if task == "classes" or name == "kl" or (task == "labels" and name == "loss"):
        return
    raise UserError(f"metric {name} is not defined for a model whose answers are {task}: choose kl")


def _loss(calibration: Calibration, images: slice, clean: Tensor) -> Metric:
    measure, labels = calibration.divergence, None if calibration.labels is None else calibration.labels[images]
    if isinstance(measure, Classes) and not measure.probabilities:
        return log_probability(clean.argmax(dim=-1) if labels is None else labels, sign=-1)
    if labels is None:
        half = 0.5 if isinstance(measure, Labels) and measure.probabilities else 0.0
        labels = (clean > half).long() if isinstance(measure, Labels) else clean.argmax(dim=-1)

    def value(answers: Tensor) -> Tensor:
        losses = loss(measure, answers, labels)
        assert losses is not None
        return losses

    return value


def fisher_metric(measure: Divergence, answers: Tensor, draws: Tensor) -> Metric:
    """A metric whose derivative, squared, has for its expectation the divergence's quadratic form along it: log p(y)
    with a drawn class y, and for other kinds of answers their product with a probe.

    answers: of the run (n, …). draws: uniform in [0, 1), float64 (n,) on the CPU.
    """
    if isinstance(measure, Classes):
        of_logits = log_probability(drawn_from(measure.logits(answers), draws))
        return lambda run: of_logits(measure.logits(run))
    (probe,) = fisher_probes(answers, draws, 1, measure)
    return lambda run: (run.double() * probe).reshape(len(run), -1).sum(dim=1)


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


def fisher_probes(logits: Tensor, draws: Tensor, count: int, measure: Divergence = CLASSES) -> Tensor:
    """Directions v of the answers, float64 (count, n, …) on their device, for which E[v vᵀ] is the quadratic form of
    each image's divergence, of classes the Fisher information: see `vitfx.graph.divergence`.

    draws: uniform in [0, 1), float64 (n,) on the CPU. An image's signs depend on nothing else.
    """
    signs = torch.stack([_signs(draw, count * logits[0].numel()) for draw in draws.tolist()])
    by_probe = signs.unflatten(1, (count, *logits.shape[1:])).transpose(0, 1)
    return measure.directions(logits, by_probe.to(logits.device))


def _signs(draw: float, count: int) -> Tensor:
    generator = torch.Generator().manual_seed(int(draw * 2**53))
    return torch.randint(0, 2, (count,), generator=generator) * 2 - 1


def _pick(values: Tensor, classes: Tensor) -> Tensor:
    return values.gather(1, classes[:, None])[:, 0]

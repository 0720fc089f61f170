"""The methods that score all edges at once: EAP, RelP, EAP-IG, means of their ranks, and the baselines Taylor and
random."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from vitfx.circuits.circuit import EMBED
from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.discovery.basis.calibration import Calibration
from vitfx.discovery.basis.metric import check_metric, fisher_metric, make_metric
from vitfx.discovery.basis.settings import Settings
from vitfx.discovery.methods.edge_gradients import TrackedRun, by_name, mean_of_edges
from vitfx.discovery.methods.magnitude import magnitude
from vitfx.discovery.methods.relevance import by_rules
from vitfx.graph.stages import Reference, of_images
from vitfx.support.errors import UserError
from vitfx.support.progress import Report


def score_edges(
    graph: EdgeGraph,
    calibration: Calibration,
    reference: Reference,
    settings: Settings,
    report: Report,
    *,
    signed: bool = False,
) -> dict[str, float]:
    """Each edge's score, by the edge's name. settings.method: one of `RANKING`.

    signed: of methods whose scores have a sign, keeps it: a score is positive where removing the edge makes the metric
    worse.
    """
    metric, steps = settings.metric, settings.steps
    methods: dict[str, Callable[[], dict[str, float]]] = {
        "eap": lambda: eap(graph, calibration, reference, metric=metric, signed=signed, progress=report),
        "relp": lambda: relp(graph, calibration, reference, metric=metric, signed=signed, progress=report),
        "eap-ig": lambda: eap_ig(
            graph, calibration, reference, metric=metric, steps=steps, signed=signed, progress=report
        ),
        "eap-ig-activations": lambda: eap_ig_activations(
            graph, calibration, reference, metric=metric, steps=steps, signed=signed, progress=report
        ),
        "ensemble": lambda: mean_of_ranks(
            [
                score_edges(graph, calibration, reference, replace(settings, method=method), report, signed=signed)
                for method in settings.ensemble
            ]
        ),
        "taylor": lambda: taylor(graph, calibration, progress=report),
        "magnitude": lambda: magnitude(graph),
        "random": lambda: random_scores(graph, settings.seed),
    }
    return methods[settings.method]()


def eap(
    graph: EdgeGraph,
    calibration: Calibration,
    reference: Reference,
    *,
    metric: str,
    signed: bool = False,
    progress: Report | None = None,
) -> dict[str, float]:
    """EAP, edge attribution patching (Syed et al. 2024, "Attribution Patching Outperforms Automated Circuit Discovery",
    arXiv:2310.10348): a first-order estimate of what removing an edge does to a metric, for all edges at once.

    |mean over images of (ref_w − clean_w) · ∂metric/∂x_r at the clean run| for each edge w → r, by its name.

    It takes one forward pass, two for `logit-difference`, and one backward pass.
    metric: one of METRICS, in whose unit the scores are. The gradient of D_KL(clean ‖ ·) is zero at the clean run, so
        `kl` takes its quadratic form instead, see `fisher`.
    signed: see `score_edges`; the quadratic form has no sign.
    Raises UserError for an unknown metric.
    """
    check_metric(metric, calibration.divergence.kind)
    if metric == "kl":
        return fisher(graph, calibration, reference, progress=progress)

    def of_batch(images: slice) -> Tensor:
        run = TrackedRun(graph, graph.embedding(calibration.clean[images]))
        value = make_metric(metric, graph, calibration, images, run.logits)
        return run.derivatives(value, run.deltas(reference, images))

    return by_name(graph, _scored(mean_of_edges(graph, calibration, of_batch, progress), metric, signed))


def relp(
    graph: EdgeGraph,
    calibration: Calibration,
    reference: Reference,
    *,
    metric: str,
    signed: bool = False,
    progress: Report | None = None,
) -> dict[str, float]:
    """RelP, relevance patching: EAP with the coefficients of layer-wise relevance propagation in place of gradients
    (Rezaei Jafari et al. 2025, arXiv:2508.21258, equation 3; the rules are in `vitfx.discovery.methods.relevance`).

    It takes as many passes as EAP, and the same arguments.
    """
    return eap(by_rules(graph), calibration, reference, metric=metric, signed=signed, progress=progress)


def eap_ig(
    graph: EdgeGraph,
    calibration: Calibration,
    reference: Reference,
    *,
    metric: str,
    steps: int = 5,
    signed: bool = False,
    progress: Report | None = None,
) -> dict[str, float]:
    """EAP-IG: edge attribution patching with integrated gradients (Hanna et al. 2024, "Have Faith in Faithfulness",
    arXiv:2403.17806): gradients are averaged on the straight line from the ablated embedding to the clean one.

    |mean over images of (ref_w − clean_w) · 1/m Σ_k ∂metric/∂x_r at z' + k/m (z − z')|, k = 1 … m, by edge name.

    z is the embedding of the image, z' its reference, and m the number of steps, each a forward and a backward pass.
    The last point is the clean run, where the gradient of `kl` is zero (Hanna et al. 2024, equation 3). ref_w − clean_w
    is the clean run's.
    metric: one of METRICS, in whose unit the scores are.
    signed: see `score_edges`.
    Raises UserError for an unknown metric, or for less than one step.
    """
    _check_integral(metric, steps, calibration)

    def of_batch(images: slice) -> Tensor:
        clean = graph.embedding(calibration.clean[images])
        ablated = of_images(reference[EMBED], images).to(clean)
        run = TrackedRun(graph, clean)
        value = make_metric(metric, graph, calibration, images, run.logits)
        deltas = run.deltas(reference, images)
        total = run.derivatives(value, deltas)
        for step in range(1, steps):
            point = torch.lerp(ablated.expand_as(clean), clean, step / steps)
            total += TrackedRun(graph, point).derivatives(value, deltas)
        return total / steps

    return by_name(graph, _scored(mean_of_edges(graph, calibration, of_batch, progress), metric, signed))


def eap_ig_activations(
    graph: EdgeGraph,
    calibration: Calibration,
    reference: Reference,
    *,
    metric: str,
    steps: int = 5,
    signed: bool = False,
    progress: Report | None = None,
) -> dict[str, float]:
    """EAP-IG along activations: gradients are averaged over runs in which one sublayer's heads or neurons, or the
    embedding, are on the straight line from their reference to their clean value (Marks et al. 2024, arXiv:2403.19647,
    section 2; for edges, Mueller et al. 2025, arXiv:2504.13151, and the code that they publish).

    |mean over images of (ref_w − clean_w) · 1/(S m) Σ_s Σ_k ∂metric/∂x_r with a_s at a'_s + k/m (a_s − a'_s)|, by edge
    name, with the embedding and the sublayers as s, S of them, and k = 1 … m. What a sublayer reads has no gradient in
    its own runs. It takes S · m forward and backward passes; arguments and errors are those of `eap_ig`.
    """
    _check_integral(metric, steps, calibration)

    def of_batch(images: slice) -> Tensor:
        clean = graph.embedding(calibration.clean[images])
        run = TrackedRun(graph, clean)
        value = make_metric(metric, graph, calibration, images, run.logits)
        deltas, activations = run.deltas(reference, images), {EMBED: clean, **run.inners}
        total = torch.zeros(len(clean), len(graph.edges()), dtype=torch.float64, device=clean.device)
        for name, activation in activations.items():
            ablated = of_images(reference[name], images).to(activation)
            for step in range(1, steps + 1):
                point = torch.lerp(ablated.expand_as(activation), activation, step / steps)
                moved = TrackedRun(graph, point) if name == EMBED else TrackedRun(graph, clean, {name: point})
                total += moved.derivatives(value, deltas)
        return total / (len(activations) * steps)

    return by_name(graph, _scored(mean_of_edges(graph, calibration, of_batch, progress), metric, signed))


def _check_integral(metric: str, steps: int, calibration: Calibration) -> None:
    check_metric(metric, calibration.divergence.kind)
    if steps < 1:
        raise UserError(f"`steps` {steps} is too small for EAP-IG: give 1 or more")


def mean_of_ranks(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """An ensemble of methods: the mean over them of each edge's rank by magnitude, as a share of the edges, with the
    score's sign (Wilcoxon 1945's signed ranks). Equal edges share a rank."""
    # The import takes half a second, which other commands need not wait for.
    from scipy.stats import rankdata

    table = np.array([list(of_method.values()) for of_method in scores])
    ranks = np.sign(table) * rankdata(np.abs(table), axis=1) / table.shape[1]
    return dict(zip(scores[0], ranks.mean(axis=0).tolist(), strict=True))


def _scored(derivatives: Tensor, metric: str, signed: bool) -> Tensor:
    """What removing edges does to a metric, as scores. A logit difference that falls is worse, a loss that rises."""
    return derivatives.abs() if not signed else -derivatives if metric == "logit-difference" else derivatives


def taylor(graph: EdgeGraph, calibration: Calibration, *, progress: Report | None = None) -> dict[str, float]:
    """The first-order Taylor score of pruning, a baseline: by how much the loss changes as an edge's activation goes to
    zero (Molchanov et al. 2017, arXiv:1611.06440, equation 8; for heads, Michel et al. 2019, arXiv:1905.10650,
    equation 2).

    Mean over images of |clean_w · ∂loss/∂x_r| for each edge w → r, by its name, in nats an image. Absolute values are
    taken image by image. There is no reference: removing an edge means zero here. Answers that have no loss are moved
    along a random direction instead, whose square costs what the divergence does (`fisher_metric`).
    """

    def of_batch(images: slice) -> Tensor:
        run = TrackedRun(graph, graph.embedding(calibration.clean[images]))
        if calibration.divergence.kind in ("classes", "labels"):
            loss = make_metric("loss", graph, calibration, images, run.logits)
        else:
            loss = fisher_metric(calibration.divergence, run.logits, calibration.draws[images])
        return run.derivatives(loss, run.deltas(None, images)).abs()

    return by_name(graph, mean_of_edges(graph, calibration, of_batch, progress))


def random_scores(graph: EdgeGraph, seed: int) -> dict[str, float]:
    """The baseline that every method must beat: for each edge, by its name, a number drawn from [0, 1), in the order of
    `graph.edges()`."""
    generator = torch.Generator().manual_seed(seed)
    return by_name(graph, torch.rand(len(graph.edges()), dtype=torch.float64, generator=generator))


def fisher(
    graph: EdgeGraph, calibration: Calibration, reference: Reference, *, progress: Report | None = None
) -> dict[str, float]:
    """The Fisher information of every edge: what removing it adds to the KL divergence, to second order.

    An edge's gate is 1 where the edge is whole and 0 where the reader sees the writer's reference. The gradient of
    D_KL(clean ‖ ·) is zero at the clean run; its quadratic form there is ½·E[(∂ log p(y|x)/∂gate)²], with y drawn from
    the model (Amari 1998; for pruning, Theis et al. 2018, arXiv:1801.05787, equation 6).

    ½ · mean over images of (∂ log p(y|x)/∂gate)² for each edge, by its name, in nats an image.

    One y is drawn for each image, from `calibration.draws`; other kinds of answers have their own form, see
    `vitfx.discovery.basis.metric.fisher_metric`. It takes one forward and one backward pass.
    """

    def of_batch(images: slice) -> Tensor:
        run = TrackedRun(graph, graph.embedding(calibration.clean[images]))
        score = fisher_metric(calibration.divergence, run.logits, calibration.draws[images])
        return run.derivatives(score, run.deltas(reference, images)).square() / 2

    return by_name(graph, mean_of_edges(graph, calibration, of_batch, progress))

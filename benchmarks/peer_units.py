"""Peers that rank heads and hidden neurons, or hidden neurons alone, delete the least, and train nothing.

Heads and neurons (deleted units leave their mean behind, which loses less than the zero that the papers leave): random;
magnitude (Han et al. 2015, arXiv:1506.02626), the mean square of a unit's weights; Taylor (Molchanov et al. 2017,
arXiv:1611.06440, equation 8; for heads, Michel et al. 2019, arXiv:1905.10650, equation 2) per FLOP saved.

Neurons alone: VBP (arXiv:2507.12988) deletes those with the least variance behind the activation over all layers and
shifts their mean into the bias. CORP (arXiv:2602.05243) deletes the same share of each layer, regresses the deleted
activations on the survivors' and folds the map into the second weight. CORP's own ranking is not reproduced: neurons
are ranked by what they write, E[h²]·|w|². λ is chosen on held-out images, where the paper uses a shrinkage rule.

Shapes: N images, T tokens, E hidden neurons of an MLP, D width of the stream.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from passes.cost import Cost, measure_cost, unit_flops
from passes.dialect import Sublayer
from passes.least_squares import Moments, ridge
from passes.plan import DeletionPlan, Refit, SublayerDeletion
from passes.stream import read_sites
from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.discovery.basis.metric import log_probability
from vitfx.discovery.methods.attribution import random_scores
from vitfx.discovery.methods.magnitude import magnitude
from vitfx.graph.stages import Stage, read_stages, streams_at
from vitfx.graph.verify import tokens_of
from vitfx.pruning.compensation import with_means
from vitfx.pruning.goal import Target
from vitfx.support.errors import UserError
from vitfx.support.progress import Watcher

_BATCH = 16
_CHOOSES = 4  # every fourth batch chooses λ


@dataclass(frozen=True)
class Given:
    """What every peer is given."""

    module: nn.Module  #: the user's own, on the CPU
    graph_module: GraphModule  #: canonical, on the device
    pixels: Tensor  #: calibration images (N, C, H, W) on the device
    labels: Tensor  #: int64 (N,), the model's own answers where the data has none
    seed: int
    watcher: Watcher
    target: Target = field(default_factory=Target)  #: what times are measured on

    @property
    def sublayers(self) -> dict[str, Sublayer]:
        return {site.name: site.module for site in read_sites(self.graph_module)}

    @property
    def tokens(self) -> int:
        return tokens_of(self.graph_module, self.pixels[:2])

    @property
    def cost(self) -> Cost:
        return measure_cost(self.graph_module, self.pixels.shape[1:])


Planned = Callable[[float], DeletionPlan]
"""From a share of the FLOPs to the plan that deletes it."""
Scores = Mapping[str, Tensor]
"""By sublayer, its units' scores, float64 (units,): the least are deleted."""


def make_random(given: Given) -> Planned:
    return _mean_shifted(given, _by_unit(given, lambda graph: random_scores(graph, given.seed)))


def make_magnitude(given: Given) -> Planned:
    return _mean_shifted(given, magnitude_scores(given))


def make_taylor(given: Given) -> Planned:
    return _mean_shifted(given, _for_flops(given, taylor_scores(given)))


def make_vbp(given: Given) -> Planned:
    hidden = hidden_moments(given)
    variances = {}
    for name, parts in hidden.items():
        whole = parts[0] + parts[1]
        mean = whole.gram[-1, :-1] / whole.rows
        variances[name] = whole.gram.diagonal()[:-1] / whole.rows - mean.square()
    return _mean_shifted(given, variances)


def make_corp(given: Given) -> Planned:
    hidden, sublayers = hidden_moments(given), given.sublayers
    places = {}
    for name, parts in hidden.items():
        squares = (parts[0] + parts[1]).gram.diagonal()[:-1]
        written = squares * sublayers[name].out.weight.detach().double().cpu().square().sum(dim=0)
        # A neuron's rank in its own layer, so that each layer loses the same share.
        places[name] = written.argsort(stable=True).argsort().double() / len(written)

    def plan(share: float) -> DeletionPlan:
        deletions = cut(given, places, share).deletions
        refits = []
        for deletion in deletions:
            name = deletion.name
            if deletion.whole:
                raise UserError(f"at {share:.0%} of the FLOPs {name} would keep no neuron to regress on: ask for less")
            refits.append(corp_refit(sublayers[name], deletion, hidden[name]))
        return DeletionPlan(deletions, tuple(refits))

    return plan


def cut(given: Given, scores: Scores, share: float) -> DeletionPlan:
    """Deletes the units of least score until the share of the FLOPs is gone; a head that would overshoot stays.

    Raises UserError where all scored units together have too few FLOPs.
    """
    sublayers, tokens, whole = given.sublayers, given.tokens, given.cost.flops
    flops = {name: unit_flops(sublayers[name], tokens) for name in scores}
    finest, wanted, saved = min(flops.values()), share * whole, 0
    ranked = sorted((float(score), name, unit) for name, own in scores.items() for unit, score in enumerate(own))
    deleted: dict[str, list[int]] = {}
    for _, name, unit in ranked:
        if saved >= wanted:
            break
        if saved + flops[name] < wanted + finest:
            deleted.setdefault(name, []).append(unit)
            saved += flops[name]
    if saved < wanted:
        most = sum(len(own) * flops[name] for name, own in scores.items()) / whole
        raise UserError(f"{share:.0%} of the FLOPs were asked for and the ranked units have {most:.1%}: ask for less")
    return DeletionPlan.deleting(given.graph_module, deleted)


def magnitude_scores(given: Given) -> dict[str, Tensor]:
    """The squared norm of a unit's weights per FLOP, which makes heads comparable with neurons, far smaller ones."""
    norms = _by_unit(given, magnitude)
    return _for_flops(given, {name: norm.square() for name, norm in norms.items()})


def taylor_scores(given: Given) -> dict[str, Tensor]:
    """Mean over images of |Σ inner · ∂loss/∂inner|, the sum over tokens and a unit's channels, the loss cross-entropy
    with the labels."""
    stages = read_stages(given.graph_module)
    totals: dict[str, Tensor] = {}
    report = given.watcher.bar("taylor")
    for start in range(0, len(given.pixels), _BATCH):
        inners: list[tuple[Stage, Tensor]] = []
        with torch.enable_grad():
            for reading in streams_at(stages, given.pixels[start : start + _BATCH]):
                if reading.stage.sublayer is not None:
                    inners.append((reading.stage, reading.inner.requires_grad_()))
            loss = log_probability(given.labels[start : start + _BATCH], sign=-1)(reading.behind).sum()
            gradients = torch.autograd.grad(loss, [inner for _, inner in inners])
        for (stage, inner), gradient in zip(inners, gradients, strict=True):
            assert stage.sublayer is not None
            by_unit = (inner.detach() * gradient).sum(dim=1).unflatten(-1, (stage.sublayer.units, -1)).sum(dim=-1)
            magnitudes = by_unit.abs().double().sum(dim=0).cpu()
            totals[stage.name] = totals[stage.name] + magnitudes if stage.name in totals else magnitudes
        report(min(start + _BATCH, len(given.pixels)), len(given.pixels))
    return {name: total / len(given.pixels) for name, total in totals.items()}


@torch.no_grad()
def hidden_moments(given: Given) -> dict[str, tuple[Moments, Moments]]:
    """Moments of each MLP's hidden neurons over images and tokens, to fit and to choose λ; memory 2·(E + 1)²."""
    stages = read_stages(given.graph_module)
    sums: dict[str, list[Moments | None]] = {}
    report = given.watcher.bar("hidden neurons")
    # Even with few images, some must choose.
    size = max(1, min(_BATCH, len(given.pixels) // _CHOOSES))
    for number, batch in enumerate(given.pixels.split(size)):
        part = int(number % _CHOOSES == 1)
        for reading in streams_at(stages, batch):
            stage = reading.stage
            if stage.sublayer is not None and stage.sublayer.kind == "neuron":
                inner = reading.inner.flatten(0, 1)
                moments = _on_cpu(Moments.of(inner, inner.new_empty(len(inner), 0)))
                parts = sums.setdefault(stage.name, [None, None])
                old = parts[part]
                parts[part] = moments if old is None else old + moments
        report(min((number + 1) * size, len(given.pixels)), len(given.pixels))
    whole = {}
    for name, (fitted, chooses) in sums.items():
        assert fitted is not None and chooses is not None
        whole[name] = (fitted, chooses)
    return whole


def corp_refit(module: Sublayer, deletion: SublayerDeletion, parts: tuple[Moments, Moments]) -> Refit:
    """W_S + W_P B, and W_P c for the bias, with B = Σ_PS (Σ_SS + λI)⁻¹ and c = μ_P − B μ_S. Regressing what the deleted
    neurons write, W_P h_P, gives W_P B directly."""
    weight = module.out.weight.detach().double().cpu()
    fit = ridge(*(_of_deleted(moments, deletion, weight) for moments in parts))
    kept = weight[:, list(deletion.kept)]
    return Refit(deletion.name, kept if fit.change is None else kept + fit.change, fit.shift)


def _of_deleted(moments: Moments, deletion: SublayerDeletion, weight: Tensor) -> Moments:
    """Moments of the survivors and of what the deleted neurons write."""
    gone, kept = torch.tensor(deletion.units), torch.tensor([*deletion.kept, len(weight[0])])
    columns = weight[:, gone]
    square = (columns.T @ columns * moments.gram[gone][:, gone]).sum()
    return Moments(moments.gram[kept][:, kept], moments.gram[kept][:, gone] @ columns.T, square)


def _on_cpu(moments: Moments) -> Moments:
    return Moments(moments.gram.cpu(), moments.cross.cpu(), moments.square.cpu())


def _mean_shifted(given: Given, scores: Scores) -> Planned:
    def plan(share: float) -> DeletionPlan:
        return with_means(given.graph_module, cut(given, scores, share), given.pixels)

    return plan


def _for_flops(given: Given, scores: Scores) -> dict[str, Tensor]:
    tokens = given.tokens
    return {name: scores[name] / unit_flops(module, tokens) for name, module in given.sublayers.items()}


def _by_unit(given: Given, score: Callable[[EdgeGraph], Mapping[str, float]]) -> dict[str, Tensor]:
    """Scores the head graph's writers, each a single unit."""
    singles = {
        name: [[unit] for unit in range(module.units)]
        for name, module in given.sublayers.items()
        if module.kind == "neuron"
    }
    graph = EdgeGraph(given.graph_module, singles)
    by_name = score(graph)
    scores = {name: torch.full((each.units,), math.nan, dtype=torch.float64) for name, each in given.sublayers.items()}
    for edge in graph.edges():
        if edge.writer.sublayer in scores:
            scores[edge.writer.sublayer][list(edge.writer.units)] = by_name[edge.name]
    return scores

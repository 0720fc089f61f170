"""Peers that rank heads and hidden neurons, or hidden neurons alone, delete the least, and train nothing.

Heads and neurons (what is deleted leaves its mean behind, which is kinder than the zero that the papers leave):
random; magnitude (Han et al. 2015, arXiv:1506.02626), the mean square of the weights that go with a unit; Taylor
(Molchanov et al. 2017, arXiv:1611.06440, equation 8; for heads, Michel et al. 2019, arXiv:1905.10650, equation 2) for
each FLOP saved.

Neurons alone: VBP (arXiv:2507.12988), those of least variance behind the activation over all layers, their mean shifted
into the bias; CORP (arXiv:2602.05243), the same share of each layer, deleted activations regressed on the survivors'
and folded into the second weight. CORP's own ranking is not taken over: what a neuron writes, E[h²]·|w|², ranks here.
λ is chosen on held-out images, which the paper takes from a rule of shrinkage.

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
_CHOOSES = 4  # one batch of so many chooses λ


@dataclass(frozen=True)
class Given:
    """What every peer gets. module: the user's own, on the CPU. graph_module: canonical, on the device. pixels:
    calibration images (N, C, H, W) there. labels: int64 (N,), the model's own answers where the data has none. target:
    what times are measured on."""

    module: nn.Module
    graph_module: GraphModule
    pixels: Tensor
    labels: Tensor
    seed: int
    watcher: Watcher
    target: Target = field(default_factory=Target)

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
"""From a share of the FLOPs to what deletes it."""
Scores = Mapping[str, Tensor]
"""Of a sublayer's units, by its name, float64 (units,): the least go."""


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
        # A neuron's place among its own layer's, so that each layer loses the same share.
        places[name] = written.argsort(stable=True).argsort().double() / len(written)

    def plan(share: float) -> DeletionPlan:
        deletions = cut(given, places, share).deletions
        refits = []
        for one in deletions:
            if one.whole:
                raise UserError(
                    f"at {share:.0%} of the FLOPs {one.name} would keep no neuron to regress on: ask for less"
                )
            refits.append(corp_refit(sublayers[one.name], one, hidden[one.name]))
        return DeletionPlan(deletions, tuple(refits))

    return plan


def cut(given: Given, scores: Scores, share: float) -> DeletionPlan:
    """The units of least score, until the share of the model's FLOPs is gone; a head that would overshoot stays.

    Raises UserError where all units that are scored have too few FLOPs together.
    """
    sublayers, tokens, whole = given.sublayers, given.tokens, given.cost.flops
    flops = {name: unit_flops(sublayers[name], tokens) for name in scores}
    finest, wanted, saved = min(flops.values()), share * whole, 0
    ranked = sorted((float(score), name, unit) for name, one in scores.items() for unit, score in enumerate(one))
    gone: dict[str, list[int]] = {}
    for _, name, unit in ranked:
        if saved >= wanted:
            break
        if saved + flops[name] < wanted + finest:
            gone.setdefault(name, []).append(unit)
            saved += flops[name]
    if saved < wanted:
        most = sum(len(one) * flops[name] for name, one in scores.items()) / whole
        raise UserError(f"{share:.0%} of the FLOPs were asked for and what is ranked has {most:.1%}: ask for less")
    return DeletionPlan(
        tuple(
            SublayerDeletion(name, module.kind, tuple(sorted(gone[name])), module.units)
            for name, module in sublayers.items()
            if name in gone
        )
    )


def magnitude_scores(given: Given) -> dict[str, Tensor]:
    """A head has many times a neuron's weights, and the square of their norm for each FLOP compares the two."""
    norms = _by_unit(given, magnitude)
    return _for_flops(given, {name: norm.square() for name, norm in norms.items()})


def taylor_scores(given: Given) -> dict[str, Tensor]:
    """Mean over images of |Σ inner · ∂loss/∂inner|, summed over tokens and a unit's channels; the loss is the
    cross-entropy with the labels."""
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
            found = by_unit.abs().double().sum(dim=0).cpu()
            totals[stage.name] = totals[stage.name] + found if stage.name in totals else found
        report(min(start + _BATCH, len(given.pixels)), len(given.pixels))
    return {name: total / len(given.pixels) for name, total in totals.items()}


@torch.no_grad()
def hidden_moments(given: Given) -> dict[str, tuple[Moments, Moments]]:
    """Of each MLP's hidden neurons, over images and tokens: to fit, and to choose λ on. Memory: 2·(E + 1)² an MLP."""
    stages = read_stages(given.graph_module)
    found: dict[str, list[Moments | None]] = {}
    report = given.watcher.bar("hidden neurons")
    # Of a few images too, some must choose.
    size = max(1, min(_BATCH, len(given.pixels) // _CHOOSES))
    for number, batch in enumerate(given.pixels.split(size)):
        part = int(number % _CHOOSES == 1)
        for reading in streams_at(stages, batch):
            stage = reading.stage
            if stage.sublayer is not None and stage.sublayer.kind == "neuron":
                inner = reading.inner.flatten(0, 1)
                moments = _on_cpu(Moments.of(inner, inner.new_empty(len(inner), 0)))
                parts = found.setdefault(stage.name, [None, None])
                old = parts[part]
                parts[part] = moments if old is None else old + moments
        report(min((number + 1) * size, len(given.pixels)), len(given.pixels))
    whole = {}
    for name, (fitted, chooses) in found.items():
        assert fitted is not None and chooses is not None
        whole[name] = (fitted, chooses)
    return whole


def corp_refit(module: Sublayer, deletion: SublayerDeletion, parts: tuple[Moments, Moments]) -> Refit:
    """W_S + W_P B, and W_P c for the bias: with B = Σ_PS (Σ_SS + λI)⁻¹ and c = μ_P − B μ_S. Regressing what the deleted
    write, W_P h_P, gives W_P B at once."""
    weight = module.out.weight.detach().double().cpu()
    fit = ridge(*(_of_deleted(one, deletion, weight) for one in parts))
    kept = weight[:, list(deletion.kept)]
    return Refit(deletion.name, kept if fit.change is None else kept + fit.change, fit.shift)


def _of_deleted(moments: Moments, deletion: SublayerDeletion, weight: Tensor) -> Moments:
    """Moments of the survivors and of what the deleted write."""
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
    """A score of the head graph's writers, each a single unit."""
    singles = {
        name: [[unit] for unit in range(module.units)]
        for name, module in given.sublayers.items()
        if module.kind == "neuron"
    }
    graph = EdgeGraph(given.graph_module, singles)
    by_name = score(graph)
    found = {name: torch.full((one.units,), math.nan, dtype=torch.float64) for name, one in given.sublayers.items()}
    for edge in graph.edges():
        if edge.writer.sublayer in found:
            found[edge.writer.sublayer][list(edge.writer.units)] = by_name[edge.name]
    return found

"""The proof: the rewritten graph against the ablated model, which computes everything and then replaces what is dead.

Both get the same plan and the same constants. The rewrite is run in float64 as well, where nothing hides behind
rounding; the artifact itself, in its own type, is compared on real images. Its cost is compared with the plan's
prediction.

The oracle stands apart on purpose: `_AblatedModel` computes the stream that each sublayer reads by itself, from the
plan alone, and calls neither `vitfx.graph.stages` nor the engines of discovery. A mistake there can't repeat itself
here and go unnoticed.
"""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from passes.attention_core import normalised
from passes.base import PassResult, run_passes
from passes.compensate import Compensate
from passes.cost import Cost, measure_cost, predict_cost
from passes.delete_heads import DeleteHeads
from passes.delete_mlp_paths import DeleteMlpPaths
from passes.dialect import Sublayer
from passes.fold_constants import FoldConstants
from passes.plan import DeletionPlan, channels_of
from passes.stream import read_sites
from vitfx.support.errors import NothingPrunable

TOLERANCE_FLOAT64 = 1e-9
TOLERANCE_FLOAT32 = 1e-4
_FLOAT64_IMAGES = 8


class VerificationError(Exception):
    """A proof failed; the sentence says where the two models part and by how much."""


@dataclass(frozen=True)
class Verification:
    """A passed proof with its figures."""

    max_abs_error: float  #: greatest |artifact − oracle| over the logits, in the artifact's own type
    relative: float  #: the same divided by the greatest |oracle|
    float64: float  #: the relative error of the same rewrite in float64
    images: int  #: how many were compared
    before: Cost  #: of the graph before the plan
    predicted: Cost  #: what the plan says of the artifact
    measured: Cost  #: what the artifact has

    @property
    def passed(self) -> bool:
        """True for every Verification that `verify` returns: it raises otherwise."""
        return (
            self.relative < TOLERANCE_FLOAT32 and self.float64 < TOLERANCE_FLOAT64 and self.predicted == self.measured
        )

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "passed": self.passed}


def rewrite(graph_module: GraphModule, plan: DeletionPlan, *, consume: bool = False) -> PassResult:
    """Carries the plan out: deletes heads and MLP paths, refits survivors, folds constants into biases.

    consume: on the graph module itself, see `passes.base.run_passes`."""
    plan.check(graph_module)
    passes = [DeleteHeads(plan), DeleteMlpPaths(plan), Compensate(plan), FoldConstants()]
    return run_passes(graph_module, passes, consume=consume)


def verify(graph_module: GraphModule, artifact: GraphModule, plan: DeletionPlan, pixels: Tensor) -> Verification:
    """Compares the artifact with the ablated model on real images (N, C, H, W) of the graph's type and device.

    Raises VerificationError where they differ, naming the first sublayer that does, or where the cost is not as
    predicted.
    """
    exact = _exact(graph_module, plan, pixels[:_FLOAT64_IMAGES].double())
    close = _difference(artifact, pixels, ablated_logits(graph_module, plan, pixels))
    image = pixels.shape[1:]
    tokens = tokens_of(graph_module, pixels[:2])
    before = measure_cost(graph_module, image)
    predicted = predict_cost(graph_module, plan, before, tokens)
    figures = Verification(*close, exact[1], len(pixels), before, predicted, measure_cost(artifact, image))
    if predicted != figures.measured:
        raise VerificationError(f"the plan predicts {predicted}, the artifact has {figures.measured}")
    if not figures.passed:
        limit, relative = (
            (TOLERANCE_FLOAT64, figures.float64)
            if not figures.float64 < TOLERANCE_FLOAT64
            else (TOLERANCE_FLOAT32, figures.relative)
        )
        where = _parting(graph_module, artifact, plan, pixels, TOLERANCE_FLOAT32)
        raise VerificationError(
            f"the artifact's logits differ from the ablated model's by {relative:.1e} of their greatest, more than "
            f"{limit:.0e}; they part at {where}"
        )
    return figures


def tokens_of(graph_module: GraphModule, pixels: Tensor) -> int:
    """Tokens in the residual stream. Raises UserError where no sublayer is left that reads it."""
    sites = read_sites(graph_module)
    if not sites:
        raise NothingPrunable
    return int(_AblatedModel(graph_module, DeletionPlan()).at_norms(pixels)[sites[0].name].shape[1])


def ablated_logits(graph_module: GraphModule, plan: DeletionPlan, pixels: Tensor) -> Tensor:
    """The oracle: (N, C, H, W) -> (N, K). Each sublayer is computed whole, then its dead units are zeroed, and its
    constant and what its refit changes are added."""
    with torch.no_grad():
        logits: Tensor = _AblatedModel(graph_module, plan).run(pixels)
    return logits


def _exact(graph_module: GraphModule, plan: DeletionPlan, pixels: Tensor) -> tuple[float, float]:
    """`_difference` in float64, where the one copy of the weights is first the oracle's and then rewritten."""
    whole = copy.deepcopy(graph_module).double()
    oracle = ablated_logits(whole, plan, pixels)
    return _difference(rewrite(whole, plan, consume=True).graph_module, pixels, oracle)


def _difference(artifact: GraphModule, pixels: Tensor, oracle: Tensor) -> tuple[float, float]:
    """The greatest absolute difference, and the same divided by the oracle's greatest logit."""
    with torch.no_grad():
        error = float((artifact(pixels) - oracle).abs().max())
    return error, error / float(oracle.abs().max())


class _AblatedModel(Interpreter):
    """Runs a canonical graph with a plan's units ablated, and can keep what each sublayer's norm reads."""

    _keeps = False

    def __init__(self, graph_module: GraphModule, plan: DeletionPlan) -> None:
        super().__init__(graph_module)
        self.deletions = {deletion.name: deletion for deletion in plan.deletions}
        self.refits = {refit.name: refit for refit in plan.refits}
        self.read: dict[str, Tensor] = {}
        self._norms = {site.norm: site.name for site in read_sites(graph_module)}

    def run_node(self, n: Node) -> Any:
        if self._keeps and n in self._norms:
            self.read[self._norms[n]] = self.env[n.all_input_nodes[0]]
        name = str(n.target) if n.op == "call_module" else ""
        deletion, refit = self.deletions.get(name), self.refits.get(name)
        if deletion is None and refit is None:
            return super().run_node(n)
        module = self.module.get_submodule(name)
        assert isinstance(module, Sublayer)
        kept = range(module.units) if deletion is None else deletion.kept
        inner = _kept_inner(module, channels_of(kept, module.channels), self.env[n.all_input_nodes[0]])
        out = module.out(inner)
        if deletion is not None and deletion.constant is not None:
            out = out + deletion.constant.to(out)
        if refit is not None:
            channels = channels_of(kept, module.channels).to(inner.device)
            change = refit.weight.to(inner) - module.out.weight[:, channels]
            out = out + inner[..., channels] @ change.T + refit.shift.to(inner)
        return out

    def at_norms(self, pixels: Tensor) -> dict[str, Tensor]:
        """The stream (N, T, D) that each sublayer reads, by its name."""
        self._keeps = True
        with torch.no_grad():
            self.run(pixels)
        return self.read


def _kept_inner(module: Sublayer, channels: Tensor, x: Tensor) -> Tensor:
    """The inner channels of the whole sublayer, the others zeroed. A norm of them all is one of these alone."""
    raw, norm = module.without_inner_norm().inner(x), module.inner_norm
    channels = channels.to(raw.device)
    kept = raw[..., channels]
    if norm is not None:
        weight, bias = (None if value is None else value[channels] for value in (norm.weight, norm.bias))
        kept = normalised(kept, norm.kind, norm.eps)
        kept = kept if weight is None else kept * weight
        kept = kept if bias is None else kept + bias
    return torch.zeros_like(raw).index_copy(-1, channels, kept)


def _parting(
    graph_module: GraphModule, artifact: GraphModule, plan: DeletionPlan, pixels: Tensor, tolerance: float
) -> str:
    """The first surviving sublayer whose stream is not the ablated model's."""
    oracle = _AblatedModel(graph_module, plan).at_norms(pixels)
    for name, stream in _AblatedModel(artifact, DeletionPlan()).at_norms(pixels).items():
        error = float((stream - oracle[name]).abs().max() / oracle[name].abs().max())
        if not error < tolerance:
            return f"the stream that {name} reads (off by {error:.1e})"
    return "the classifier head, behind the last sublayer"

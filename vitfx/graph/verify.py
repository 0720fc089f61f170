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
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from passes.attention_core import normalised
from passes.base import PassResult, run_passes, sharing_weights
from passes.compensate import Compensate
from passes.cost import Cost, measure_cost, predict_cost
from passes.delete_heads import DeleteHeads
from passes.delete_mlp_paths import DeleteMlpPaths
from passes.dialect import Attention, Sublayer
from passes.fold_constants import FoldConstants
from passes.merge_tokens import MergeBySchedule, schedule_of
from passes.mlp import Neurons
from passes.plan import DeletionPlan, channels_of
from passes.stream import read_sites
from vitfx.graph.merge_oracle import Merged, Merges, attended, clearly_merged, keys_of
from vitfx.support.errors import NothingPrunable
from vitfx.support.progress import Report

TOLERANCE_FLOAT64 = 1e-9
TOLERANCE_FLOAT32 = 1e-4
_FLOAT64_IMAGES = 8


Model = Callable[[Tensor], Tensor]
"""(N, C, H, W) -> (N, K)."""


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


def rewrite(
    graph_module: GraphModule, plan: DeletionPlan, merging: MergeBySchedule | None = None, *, consume: bool = False
) -> PassResult:
    """Carries the plan out: deletes heads and MLP paths, refits survivors, folds constants into biases. Then tokens
    merge, by the keys of the heads that are left.

    consume: on the graph module itself, see `passes.base.run_passes`."""
    plan.check(graph_module)
    passes = [DeleteHeads(plan), DeleteMlpPaths(plan), Compensate(plan), FoldConstants()]
    return run_passes(graph_module, [*passes, *([merging] if merging else [])], consume=consume)


def rewritten(graph_module: GraphModule, plan: DeletionPlan, merging: MergeBySchedule | None = None) -> GraphModule:
    """The same in eval mode, to be looked at and dropped: what the plan leaves shares its weights with the original,
    as copies of a large model would stay in memory until Python looks for what is out of reach."""
    return rewrite(sharing_weights(graph_module), plan, merging, consume=True).graph_module.eval()


def verify(
    graph_module: GraphModule,
    artifact: GraphModule,
    plan: DeletionPlan,
    pixels: Tensor,
    progress: Report | None = None,
) -> Verification:
    """Compares the artifact with the ablated model on real images (N, C, H, W) of the graph's type and device.

    Where tokens merge in the artifact they do so in the ablated model, by plain loops (`vitfx.graph.merge_oracle`);
    images whose merges rounding could change are left out.
    Raises VerificationError where they differ, naming the first sublayer that does, or where the cost is not as
    predicted.
    """
    merges = Merges.of(artifact)
    pixels = clearly_merged(artifact, pixels)
    merging = MergeBySchedule(schedule_of(artifact), pixels[:2])
    exact = _exact(graph_module, plan, merging, merges, pixels[:_FLOAT64_IMAGES].double(), progress)
    close = _difference(artifact, pixels, ablated_logits(graph_module, plan, pixels, merges))
    image = pixels.shape[1:]
    tokens = tokens_of(graph_module, pixels[:2])
    before = measure_cost(graph_module, image)
    merged = rewritten(graph_module, DeletionPlan(), merging) if merges.behind else graph_module
    predicted = predict_cost(merged, plan, measure_cost(merged, image) if merges.behind else before, tokens)
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


def ablated_logits(
    graph_module: GraphModule, plan: DeletionPlan, pixels: Tensor, merges: Merges | None = None
) -> Tensor:
    """The oracle: (N, C, H, W) -> (N, K). Each sublayer is computed whole, then its dead units are zeroed, and its
    constant and what its refit changes are added. merges: where tokens merge in the artifact."""
    with torch.no_grad():
        logits: Tensor = _AblatedModel(graph_module, plan, merges).run(pixels)
    return logits


def _exact(
    graph_module: GraphModule,
    plan: DeletionPlan,
    merging: MergeBySchedule,
    merges: Merges,
    pixels: Tensor,
    progress: Report | None,
) -> tuple[float, float]:
    """`_difference` in float64, where the one copy of the weights is first the oracle's and then rewritten.

    progress: called after each image, since float64 is slow.
    """
    done = 0

    def by_image(model: Model, images: Tensor) -> Tensor:
        nonlocal done
        answers = []
        for image in images.split(1):
            answers.append(model(image))
            done += 1
            if progress is not None:
                progress(done, 2 * len(images))
        return torch.cat(answers)

    whole = copy.deepcopy(graph_module).double()
    oracle = by_image(lambda image: ablated_logits(whole, plan, image, merges), pixels)
    artifact = rewrite(whole, plan, merging, consume=True).graph_module
    return _difference(partial(by_image, artifact), pixels, oracle)


def _difference(artifact: Model, pixels: Tensor, oracle: Tensor) -> tuple[float, float]:
    """The greatest absolute difference, and the same divided by the oracle's greatest logit."""
    with torch.no_grad():
        error = float((artifact(pixels) - oracle).abs().max())
    return error, error / float(oracle.abs().max())


class _AblatedModel(Interpreter):
    """Runs a canonical graph with a plan's units ablated and tokens merged, and can keep what each sublayer's norm
    reads."""

    _keeps = False

    def __init__(self, graph_module: GraphModule, plan: DeletionPlan, merges: Merges | None = None) -> None:
        super().__init__(graph_module)
        sites = read_sites(graph_module)
        self.merges = merges or Merges({}, 0, restored=False)
        self._merged: Merged | None = None
        self._keys: dict[str, Tensor] = {}
        self._ends = {site.end: site.name for site in sites if isinstance(site.module, Attention)}
        self._last = [site.add for site in sites if isinstance(site.module, Attention | Neurons)][-1:]
        self.deletions = {deletion.name: deletion for deletion in plan.deletions}
        self.refits = {refit.name: refit for refit in plan.refits}
        self.read: dict[str, Tensor] = {}
        self._norms = {site.norm: site.name for site in sites}

    def run_node(self, n: Node) -> Any:
        if self._keeps and n in self._norms:
            self.read[self._norms[n]] = self.env[n.all_input_nodes[0]]
        value = self._run(n)
        if (name := self._ends.get(n, "")) in self.merges.behind:
            self._merged = self._merged or Merged.of(value)
            value = self._merged.merge(value, self._keys[name], self.merges.behind[name], self.merges.protected)
        if n in self._last and self._merged is not None and self.merges.restored:
            value = self._merged.restore(value)
        return value

    def _run(self, n: Node) -> Any:
        name = str(n.target) if n.op == "call_module" else ""
        deletion, refit = self.deletions.get(name), self.refits.get(name)
        module = self.module.get_submodule(name) if name else None
        if not isinstance(module, Sublayer):
            return super().run_node(n)
        kept = tuple(range(module.units)) if deletion is None else deletion.kept
        reads = self.env[n.all_input_nodes[0]]
        merged = self._merged if isinstance(module, Attention) else None
        if name in self.merges.behind and isinstance(module, Attention):
            self._keys[name] = keys_of(module, kept, reads, self._merged)
        if deletion is None and refit is None and merged is None:
            return super().run_node(n)
        inner = _kept_inner(module, channels_of(kept, module.channels), reads, merged)
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


def _kept_inner(module: Sublayer, channels: Tensor, x: Tensor, merged: Merged | None) -> Tensor:
    """The inner channels of the whole sublayer, the others zeroed. A norm of them all is one of these alone."""
    norm = module.inner_norm
    if merged is not None and isinstance(module, Attention):
        raw = attended(module, x, merged)
    else:
        raw = module.without_inner_norm().inner(x)
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
    oracle = _AblatedModel(graph_module, plan, Merges.of(artifact)).at_norms(pixels)
    for name, stream in _AblatedModel(artifact, DeletionPlan()).at_norms(pixels).items():
        error = float((stream - oracle[name]).abs().max() / oracle[name].abs().max())
        if not error < tolerance:
            return f"the stream that {name} reads (off by {error:.1e})"
    return "the classifier head, behind the last sublayer"

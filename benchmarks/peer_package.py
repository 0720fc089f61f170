"""Torch-Pruning (Fang et al. 2023, arXiv:2301.12900), the package, in the settings of its own examples for ViTs.

Importance is group Taylor from the cross-entropy of the calibration images. Every layer is pruned by the same ratio,
which is searched for until the share of FLOPs is gone; hidden neurons get a higher ratio where the next step of heads
or width would overshoot. Nothing makes up for deletions: the package has no such step.

uniform: prunes the stream's width and the hidden neurons of torchvision's own VisionTransformer, which the package's
tracer accepts as it is; the result is traced anew. The package's table for ViTs lists this setting first.
bottleneck: prunes the channels inside heads and the hidden neurons, not the stream; on the canonical graph with plain
linears, because inside nn.MultiheadAttention the package prunes nothing without the stream.
heads: prunes whole heads (`prune_num_heads`, `head_pruning_ratio`) instead of channels inside them, on the same graph.
"""

from __future__ import annotations

import copy
import importlib.util
import warnings
from collections.abc import Callable
from importlib import import_module, metadata
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import VisionTransformer

from benchmarks.peer_units import Given
from passes.dialect import Attention, Projection, Sublayer
from passes.mlp import Mlp
from passes.stream import Site, read_sites
from vitfx.discovery.basis.metric import log_probability
from vitfx.graph.trace import to_canonical
from vitfx.support.errors import UserError

PACKAGE = "torch-pruning"
_BATCH = 16
_STEPS = 10  # halvings in the search for the ratio
_TOLERANCE = 0.005  # of the FLOPs: a larger overshoot is avoided where possible

Prune = Callable[[float, float], nn.Module | None]
"""From a pruning ratio, and that of hidden neurons, to the pruned model; None where a layer would be left empty."""


def package_version() -> str:
    """Raises UserError where the package is missing."""
    if importlib.util.find_spec("torch_pruning") is None:
        raise UserError(f"{PACKAGE} is not installed: pip install 'vitfx[peers]', or leave it out of --peers")
    return metadata.version(PACKAGE)


def make_uniform(given: Given) -> Callable[[float], GraphModule]:
    if not isinstance(given.module, VisionTransformer):
        raise UserError(f"{PACKAGE}'s uniform setting is for torchvision's VisionTransformer: leave it out of --peers")
    ready = _with_gradients(copy.deepcopy(given.module).to(given.pixels.device), given)
    return _reaching(given, lambda ratio, hidden: _prune_width(ready(), given, ratio, hidden))


def make_bottleneck(given: Given) -> Callable[[float], GraphModule]:
    ready = _with_gradients(_plain(given.graph_module), given)
    return _reaching(given, lambda ratio, hidden: _prune_inside(ready(), given, ratio, hidden, whole_heads=False))


def make_heads(given: Given) -> Callable[[float], GraphModule]:
    ready = _with_gradients(_plain(given.graph_module), given)
    return _reaching(given, lambda ratio, hidden: _prune_inside(ready(), given, ratio, hidden, whole_heads=True))


def _reaching(given: Given, prune: Prune) -> Callable[[float], GraphModule]:
    """Finds the smallest ratio that deletes the share. Heads and widths go in steps: where the next overshoots, only
    hidden neurons are pruned further."""
    image, whole = given.pixels.shape[1:], given.cost.flops
    tried: dict[tuple[float, float], float] = {}

    def deleted(ratio: float, hidden: float) -> float:
        if (ratio, hidden) not in tried:
            pruned = prune(ratio, hidden)
            tried[ratio, hidden] = 1.0 if pruned is None else 1 - _flops(pruned, image) / whole
        return tried[ratio, hidden]

    def search(low: float, enough: Callable[[float], bool]) -> tuple[float, float]:
        high = 1.0
        for _ in range(_STEPS):
            middle = (low + high) / 2
            low, high = (low, middle) if enough(middle) else (middle, high)
        return low, high

    def reach(share: float) -> GraphModule:
        low, high = search(0.0, lambda ratio: deleted(ratio, ratio) >= share)
        ratios = (high, high)
        if deleted(*ratios) - share > _TOLERANCE:
            hidden = search(low, lambda hidden: deleted(low, hidden) >= share)[1]
            if share <= deleted(low, hidden) < deleted(*ratios):
                ratios = (low, hidden)
        pruned = prune(*ratios)
        if pruned is None or deleted(*ratios) < share:
            raise UserError(f"{PACKAGE} can't delete {share:.0%} of the FLOPs without emptying a layer: ask for less")
        given.watcher.say(f"{PACKAGE}: ratio {ratios[0]:.4f}, of hidden neurons {ratios[1]:.4f}")
        return to_canonical(pruned.cpu(), given.pixels[:2].cpu()).graph_module

    return reach


def _flops(module: nn.Module, image: torch.Size) -> int:
    """For one image of shape (C, H, W), as `passes.cost` counts. Gradients are on: without them torchvision's attention
    is a single operator that is not counted."""
    weight = next(module.parameters())
    pixels = torch.zeros(1, *image, dtype=weight.dtype, device=weight.device)
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        module(pixels)
    return int(counter.get_total_flops())


def _with_gradients(module: nn.Module, given: Given) -> Callable[[], nn.Module]:
    """Makes copies of the module for pruning to use up, each with the gradients of the calibration loss."""
    for parameter in module.parameters():
        parameter.requires_grad_()
    report = given.watcher.bar("gradients")
    for start in range(0, len(given.pixels), _BATCH):
        batch = slice(start, start + _BATCH)
        with torch.enable_grad():
            loss = log_probability(given.labels[batch], sign=-1)(module(given.pixels[batch])).sum()
        (loss / len(given.pixels)).backward()
        report(min(start + _BATCH, len(given.pixels)), len(given.pixels))

    def ready() -> nn.Module:
        fresh = copy.deepcopy(module)
        for new, old in zip(fresh.parameters(), module.parameters(), strict=True):
            new.grad = None if old.grad is None else old.grad.clone()
        return fresh

    return ready


def _prune_width(module: nn.Module, given: Given, ratio: float, hidden: float) -> nn.Module | None:
    """Prunes torchvision's module: as many heads, but narrower ones."""
    assert isinstance(module, VisionTransformer)
    blocks = list(module.encoder.layers)
    heads: int = blocks[0].self_attention.num_heads
    if int((1 - ratio) * module.hidden_dim) < heads or int((1 - hidden) * blocks[0].mlp[0].out_features) < heads:
        return None
    _run(
        module,
        given.pixels[:2],
        pruning_ratio=ratio,
        pruning_ratio_dict={block.mlp[0]: hidden for block in blocks},
        ignored_layers=[module.heads],
        unwrapped_parameters=[(module.class_token, 2), (module.encoder.pos_embedding, 2)],
        round_to=heads,
    )
    module.hidden_dim = module.conv_proj.out_channels
    pruned: nn.Module = module
    return pruned


def _prune_inside(
    module: nn.Module, given: Given, ratio: float, hidden: float, *, whole_heads: bool
) -> nn.Module | None:
    """Makes a canonical graph from one with plain linears."""
    assert isinstance(module, GraphModule)
    sublayers = {name: module.get_submodule(name) for name in given.sublayers}
    attentions = [sublayer for sublayer in sublayers.values() if isinstance(sublayer, Attention)]
    mlps = [sublayer for sublayer in sublayers.values() if isinstance(sublayer, Mlp)]
    least = min((attention.units if whole_heads else attention.head_dim for attention in attentions), default=0)
    if (attentions and int((1 - ratio) * least) < 1) or any(int((1 - hidden) * mlp.units) < 1 for mlp in mlps):
        return None
    inside = {id(part) for sublayer in sublayers.values() for part in sublayer.modules()}
    others = [part for part in module.modules() if isinstance(part, nn.Linear) and id(part) not in inside]
    left = _run(
        module,
        given.pixels[:2],
        pruning_ratio=ratio,
        pruning_ratio_dict={mlp.fc1: hidden for mlp in mlps},
        ignored_layers=[sublayer.out for sublayer in sublayers.values()] + others,
        num_heads={linear: each.units for each in attentions for linear in (each.q, each.k, each.v)},
        prune_num_heads=whole_heads,
        prune_head_dims=not whole_heads,
        head_pruning_ratio=ratio if whole_heads else 0.0,
    )
    pruned = copy.deepcopy(given.graph_module)
    for name, sublayer in sublayers.items():
        heads = left[sublayer.q] if isinstance(sublayer, Attention) else 0
        pruned.set_submodule(name, _canonical(sublayer, heads))
    return pruned.eval()


def _run(module: nn.Module, example: Tensor, **settings: Any) -> dict[nn.Module, int]:
    """Prunes in place. Gives how many heads each attention's linears have left."""
    package = import_module("torch_pruning")
    with warnings.catch_warnings():
        # It warns of parameters outside any layer, which only pruning the stream would touch.
        warnings.simplefilter("ignore")
        pruner = package.pruner.BasePruner(
            module, example, importance=package.importance.GroupTaylorImportance(), **settings
        )
        pruner.step()
    heads: dict[nn.Module, int] = pruner.num_heads
    return heads


def _plain(graph_module: GraphModule) -> GraphModule:
    """The graph with linears for projections, which the package does not know. Raises UserError."""
    plain = copy.deepcopy(graph_module)
    for site in read_sites(plain):
        _check_plain(site)
        out = site.module.out
        if out.bias is not None and out.bias.dim() != 1:
            raise UserError(f"{PACKAGE} takes no bias for each token, which {site.name} has: give an unpruned model")
        linear = nn.Linear(out.weight.shape[1], out.weight.shape[0], bias=out.bias is not None).to(out.weight)
        linear.load_state_dict(out.state_dict())
        site.module.out = linear  # type: ignore[assignment]
    return plain


def _check_plain(site: Site) -> None:
    """Raises UserError for a sublayer that the package would prune without knowing all of what it computes."""
    module = site.module
    if isinstance(module, Attention):
        more = ", ".join(module.core.extras)
    else:
        more = "" if isinstance(module, Mlp) and module.hidden_norm is None else type(module).__name__
    if more or (isinstance(module, Attention) and not module.core.plain):
        raise UserError(
            f"{PACKAGE} is compared on plain attention and MLPs alone, and {site.name} has more ({more or 'a norm'}): "
            "leave it out of --peers"
        )


def _canonical(module: nn.Module, heads: int) -> Sublayer:
    """The pruned sublayer in the dialect. heads: how many an attention has left."""
    assert isinstance(module, Attention | Mlp)
    out_bias = None if module.out.bias is None else tuple(module.out.bias.shape)
    width = module.out.weight.shape[0]
    made: Sublayer
    if isinstance(module, Attention):
        parts = (module.q, module.k, module.v)
        head_dim, value_dim = (part.out_features // heads for part in (module.q, module.v))
        biases = tuple(part.bias is not None for part in parts)
        assert len(biases) == 3
        made = Attention(width, heads, head_dim, value_dim, module.scale, biases, out_bias)
    else:
        made = Mlp(width, module.fc1.out_features, module.activation, module.fc1.bias is not None, out_bias)
    made.out = Projection(module.out.weight.shape[1], width, out_bias)
    made = made.to(module.out.weight)
    made.load_state_dict(module.state_dict())
    return made

"""Refits behind merges, against streams that another module taps, and averages that a loop takes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from passes.merge_tokens import MergeBySchedule
from passes.plan import DeletionPlan
from passes.stream import read_sites
from passes.token_schedule import TokenSchedule
from tests.support.checks import canonical
from tests.support.families import images
from vitfx.graph.verify import rewritten
from vitfx.pruning import iterative_pruner
from vitfx.pruning.compensation import Compensator, divergence
from vitfx.pruning.iterative_pruner import IterativePruner, State
from vitfx.pruning.merged_refit import refit_with_merges
from vitfx.recovery.teacher import TappedModel
from vitfx.support.progress import Silent

PIXELS = images(64).double()
MERGING = MergeBySchedule(TokenSchedule(((0, 4), (1, 2))), PIXELS[:2])
WHOLE = {"m1": tuple(range(next(site.module.units for site in read_sites(canonical()) if site.name == "m1")))}
SOME = {"a0": (1,), "m0": tuple(range(0, 16, 2)), "a1": (0,), "m1": (3, 5), "m2": tuple(range(6))}


def plan_of(graph_module: torch.fx.GraphModule, units: dict[str, tuple[int, ...]]) -> DeletionPlan:
    return Compensator(graph_module, PIXELS)(DeletionPlan.deleting(graph_module, units)).plan


def missing(original: torch.fx.GraphModule, plan: DeletionPlan, name: str) -> Tensor:
    """(rows, D): what the merged model's stream behind a sublayer lacks of the original's averages there."""
    merged = rewritten(original, plan, MERGING)
    _, (ours,), (groups,) = TappedModel(merged, (name,))(PIXELS)
    _, (theirs,), _ = TappedModel(original, (name,))(PIXELS)
    assert groups is not None
    rows = []
    for image in range(len(PIXELS)):
        tokens = range(ours.shape[1]) if name not in ("a2", "m2") else (0,)
        rows += [theirs[image, groups[image] == token].mean(0) - ours[image, token] for token in tokens]
    return torch.stack(rows).detach()


@pytest.mark.parametrize("gone", [{}, WHOLE], ids=["parts", "a whole MLP"])
def test_streams_come_nearer_to_the_originals_averages(gone: dict[str, tuple[int, ...]]) -> None:
    original = canonical()
    before = plan_of(original, {**SOME, **gone})
    after = refit_with_merges(original, before, MERGING, PIXELS)
    refitted = [name for name in ("a0", "m0", "a1", "m1", "a2", "m2") if name not in gone]
    assert [refit.name for refit in after.refits] == refitted and after.deletions == before.deletions
    assert not any(refit is old for refit in after.refits for old in before.refits)
    for name in refitted[1:]:
        if gone and name == "a1":
            continue  # it is read behind the constant of what was deleted
        old, new = (missing(original, plan, name) for plan in (before, after))
        assert new.square().mean() < old.square().mean()
        # The shift is free, so that nothing is lacking on average.
        assert new.mean(0).abs().max() < 1e-9 < old.mean(0).abs().max()
    assert divergence(original, after, PIXELS, merging=MERGING) < divergence(original, before, PIXELS, merging=MERGING)


def test_what_a_deleted_sublayer_leaves_is_counted_once() -> None:
    original, merging = canonical(), MergeBySchedule(TokenSchedule(((0, 4),)), PIXELS[:2])
    before = plan_of(original, {**SOME, **WHOLE})
    after = refit_with_merges(original, before, merging, PIXELS)
    merged = rewritten(original, after, merging)
    (norm,) = (site.norm for site in read_sites(merged) if site.name == "a2")
    kept: list[Tensor] = []
    with merged.get_submodule(str(norm.target)).register_forward_pre_hook(lambda _, args: kept.append(args[0])):
        merged(PIXELS)
    _, _, (groups,) = TappedModel(merged, ("a2",))(PIXELS)
    _, (theirs,), _ = TappedModel(original, ("m1",))(PIXELS)
    averages = torch.stack(
        [theirs[image, groups[image] == token].mean(0) for image in range(len(PIXELS)) for token in range(13)]
    )
    assert (averages - kept[0].flatten(0, 1)).mean(0).abs().max() < 1e-9


@pytest.mark.parametrize("helps", [True, False])
def test_a_pruner_keeps_them_where_the_held_out_images_gain(helps: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    original = canonical()
    pruner = IterativePruner(original, PIXELS, None, scored=48, seed=0, watcher=Silent(), merging=MERGING)
    good = plan_of(original, SOME)
    bad = DeletionPlan(good.deletions)
    plans = (bad, good) if helps else (good, bad)
    monkeypatch.setattr(iterative_pruner, "refit_with_merges", lambda *_: plans[1])
    assert pruner.finish(State(plans[0], {}, {})).plan is good

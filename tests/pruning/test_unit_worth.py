import pytest
import torch

from passes.plan import DeletionPlan, Refit, SublayerDeletion, channels_of
from tests.support.checks import assert_equal, canonical
from tests.support.families import images
from vitfx.graph.stages import read_stages
from vitfx.graph.verify import ablated_logits
from vitfx.pruning.unit_worth import BATCH, planned_projections, unit_worth


def sublayers(stages):
    return {stage.name: stage.sublayer for stage in stages if stage.sublayer is not None}


def pruned_plan(stages):
    """Units gone of two sublayers, one of them refitted, and a third refitted alone."""
    modules = sublayers(stages)
    generator = torch.Generator().manual_seed(3)

    def deletion(name, units):
        module = modules[name]
        width = module.out.weight.shape[0]
        constant = torch.randn(width, dtype=torch.float64, generator=generator) / 10
        return SublayerDeletion(name, module.kind, units, module.units, constant)

    def refit(name, kept):
        module = modules[name]
        weight = module.out.weight.detach()[:, channels_of(kept, module.channels)]
        change = torch.randn(weight.shape, dtype=torch.float64, generator=generator) / 50
        return Refit(name, weight + change, torch.full((len(weight),), 0.02, dtype=torch.float64))

    gone = (0, 2)
    kept = [unit for unit in range(modules["m0"].units) if unit not in gone]
    deletions = (deletion("a0", (1,)), deletion("m0", gone))
    return DeletionPlan(deletions, (refit("m0", kept), refit("a1", range(modules["a1"].units))))


@pytest.fixture(params=["whole", "pruned"])
def case(request):
    graph_module = canonical()
    stages = read_stages(graph_module)
    plan = DeletionPlan() if request.param == "whole" else pruned_plan(stages)
    return graph_module, stages, plan, images(5).double()


def run(stages, projections, pixels, gates=None, means=None):
    """The model as pruned; gates: for each sublayer (N, units), how much of each unit there is beyond what is there."""
    stream, inners = pixels, {}
    for stage in stages:
        if stage.sublayer is None:
            stream = stage(stream)
            continue
        module, one = stage.sublayer, projections.get(stage.name)
        inner = inners[stage.name] = stage.inner(stream)
        weight = module.out.weight if one is None else one.weight
        out = module.out(inner) if one is None else inner @ one.weight.T + one.bias
        if gates is not None:
            gone = torch.zeros(module.units, dtype=torch.bool) if one is None else one.deleted
            seen = torch.where(gone.repeat_interleave(module.channels), module.out.weight, weight)
            by_channel = gates[stage.name].repeat_interleave(module.channels, dim=1)[:, None]
            out = out + (by_channel * (means[stage.name] - inner.detach())) @ seen.T
        stream = stream + out
    return stream, inners


def test_a_mended_run_is_the_ablated_model(case):
    graph_module, stages, plan, pixels = case
    logits, _ = run(stages, planned_projections(stages, plan), pixels)
    assert_equal(logits, ablated_logits(graph_module, plan, pixels), 1e-12)


def test_worth_is_that_of_gates_by_autograd_and_covariance_that_of_torch(case):
    _, stages, plan, pixels = case
    projections = planned_projections(stages, plan)
    with torch.no_grad():
        _, inners = run(stages, projections, pixels)
    flat = {name: inner.flatten(0, 1) for name, inner in inners.items()}
    means = {name: rows.mean(dim=0) for name, rows in flat.items()}
    gates = {
        name: torch.zeros(len(pixels), module.units, dtype=torch.float64, requires_grad=True)
        for name, module in sublayers(stages).items()
    }
    logits, _ = run(stages, projections, pixels, gates, means)
    log_p = logits.log_softmax(-1)
    generator = torch.Generator().manual_seed(11)
    signs = torch.randint(0, 2, log_p.shape, generator=generator).to(log_p) * 2 - 1
    score = (log_p.detach().exp().sqrt() * signs * log_p).sum()
    expected = dict(zip(gates, torch.autograd.grad(score, list(gates.values())), strict=True))
    found = unit_worth(stages, projections, pixels, seed=11)
    assert found.keys() == expected.keys()
    for name, one in found.items():
        assert_equal(one.fisher, expected[name].square().mean(dim=0) / 2, 1e-10)
        assert_equal(one.covariance, torch.cov(flat[name].T, correction=0), 1e-10)


def test_on_average_over_signs_worth_is_the_fisher_information_over_all_classes():
    stages = read_stages(canonical())
    pixels = images(2).double()
    found = sum(unit_worth(stages, {}, pixels, seed=seed)["a1"].fisher for seed in range(400)) / 400
    gate = torch.zeros(len(pixels), sublayers(stages)["a1"].units, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        means = {name: inner.flatten(0, 1).mean(dim=0) for name, inner in run(stages, {}, pixels)[1].items()}
    gates = {name: torch.zeros(len(pixels), one.units).double() for name, one in sublayers(stages).items()}
    logits, _ = run(stages, {}, pixels, gates | {"a1": gate}, means)
    log_p = logits.log_softmax(-1)
    total = torch.zeros_like(gate)
    for label in range(log_p.shape[1]):
        (one,) = torch.autograd.grad(log_p[:, label].sum(), gate, retain_graph=True)
        total += log_p[:, label, None].exp().detach() * one.square()
    assert torch.allclose(found, total.mean(dim=0) / 2, rtol=0.25)


def test_batches_add_up():
    stages = read_stages(canonical())
    pixels = images(BATCH + 3).double()
    seen = []
    found = unit_worth(stages, {}, pixels, seed=0, progress=lambda done, total: seen.append((done, total)))
    assert seen == [(BATCH, BATCH + 3), (BATCH + 3, BATCH + 3)]
    with torch.no_grad():
        _, inners = run(stages, {}, pixels)
    assert_equal(found["m1"].covariance, torch.cov(inners["m1"].flatten(0, 1).T, correction=0), 1e-10)

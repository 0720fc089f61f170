"""Relevance patching against a plain re-implementation: hooks on a model's own modules, one image at a time."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from passes.attention_core import L2, LAYER, RMS, HeadNorm
from passes.mlp import GatedMlp, Mlp
from passes.norms import NormOnNorm
from tests.support.checks import canonical
from tests.support.families import images, make
from tests.support.gated import assert_scores, direct_metric, make_graph, make_inputs, one_image, reference_of
from vitfx.circuits.circuit import EMBED, LOGITS, STREAM
from vitfx.circuits.edge_graph import EdgeGraph
from vitfx.discovery.methods.attribution import eap, fisher, relp
from vitfx.discovery.methods.relevance import LinearNorm, RelevantNeurons, _linear, by_rules
from vitfx.discovery.run import whole_mlps
from vitfx.models.vit import ViT

HEADS, CHANNELS = 4, 8
FAMILIES = (
    "vitfx", "torchvision", "timm-rms-swiglu-qk-norm", "timm-norms-inside", "timm-norm-on-norm", "hf-dinov3", "timm-map"
)  # fmt: skip


def scale_of(x):
    return (x.var(dim=-1, correction=0, keepdim=True) + 1e-5).sqrt()


def by_hooks(metric, reference, graph, pixels):
    """Each edge's product for one image, from a ViT whose modules hooks have put under the rules."""
    model = make("vitfx").double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.3)
    seen = {}

    def keep(name, value):
        value.retain_grad()
        seen[name] = value

    def linear_norm(module, inputs, output):
        (x,) = inputs
        return (x - x.mean(dim=-1, keepdim=True)) / scale_of(x).detach() * module.weight + module.bias

    def identity(module, inputs, output):
        (x,) = inputs
        stable = x + 1e-6 * x.sign()
        return stable * (output / stable).detach()

    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.register_forward_hook(linear_norm)
        elif isinstance(module, nn.GELU):
            module.register_forward_hook(identity)
    model.blocks.register_forward_pre_hook(lambda module, inputs: keep("embed", inputs[0]))
    model.norm.register_forward_pre_hook(lambda module, inputs: keep("logits", inputs[0]))
    for index, block in enumerate(model.blocks):
        for letter, norm, first, last in (
            ("a", block.attention_norm, block.attention.qkv, block.attention.out[0]),
            ("m", block.mlp_norm, block.mlp[0], block.mlp[3]),
        ):
            name = f"{letter}{index}"
            norm.register_forward_pre_hook(lambda module, inputs, name=name: keep(f"{name} reads", inputs[0]))
            first.register_forward_hook(lambda module, inputs, output, name=name: keep(f"{name} first", output))
            last.register_forward_pre_hook(lambda module, inputs, name=name: keep(name, inputs[0]))
            last.register_forward_hook(lambda module, inputs, output, name=name: keep(f"{name} out", output))
    metric(model(pixels)).backward()
    return {
        edge.name: float(
            (change(graph, reference, seen, edge.writer) * read_gradient(model, seen, edge)).sum().detach()
        )
        for edge in graph.edges()
    }


def change(graph, reference, seen, writer):
    """The writer's reference less what it added."""
    if writer.sublayer == EMBED:
        return reference[EMBED] - seen["embed"].detach()
    written = {writer.sublayer: seen[writer.sublayer].detach()}
    return reference_of(graph, reference, writer) - reference_of(graph, written, writer)


def read_gradient(model, seen, edge):
    """The relevance coefficient of the stream as the reader alone reads it."""
    reader = edge.reader
    if reader.sublayer == STREAM:
        # Whatever is added behind the writer passes on as the whole sublayer's output does.
        return seen["embed" if edge.writer.sublayer == EMBED else f"{edge.writer.sublayer} out"].grad
    if reader.sublayer == LOGITS:
        return seen["logits"].grad
    block = model.blocks[int(reader.sublayer[1:])]
    gradient, linear, norm = seen[f"{reader.sublayer} first"].grad, block.mlp[0], block.mlp_norm
    if reader.head is not None:
        linear, norm = block.attention.qkv, block.attention_norm
        parts = [reader.part] if reader.part else list("qkv")
        rows = torch.zeros(3, HEADS, CHANNELS, dtype=torch.float64)
        rows[["qkv".index(part) for part in parts], reader.head] = 1
        gradient = gradient * rows.flatten()
    behind = gradient @ linear.weight * norm.weight
    read = seen[f"{reader.sublayer} reads"].detach()
    return (behind - behind.mean(dim=-1, keepdim=True)) / scale_of(read)


@pytest.mark.parametrize("metric", ["loss", "logit-difference"])
@pytest.mark.parametrize("granularity", ["block", "head", "edge", "qkv"])
def test_every_edge_agrees_with_hooks_on_the_model(granularity, metric):
    graph, calibration, reference = make_inputs(granularity)
    got = relp(graph, calibration, reference, metric=metric)
    measure = direct_metric(metric, graph, calibration)
    rows = [
        by_hooks(
            lambda logits, index=index: measure(index, logits),
            one_image(reference, index),
            graph,
            calibration.clean[index : index + 1],
        )
        for index in range(len(calibration.clean))
    ]
    assert_scores(got, {name: abs(sum(row[name] for row in rows)) / len(rows) for name in rows[0]})


def test_hooks_are_put_on_the_modules_that_they_name():
    assert isinstance(make("vitfx"), ViT)


def test_rules_differ_from_gradients():
    graph, calibration, reference = make_inputs("head")
    by_rule, by_gradient = (method(graph, calibration, reference, metric="loss") for method in (relp, eap))
    assert max(abs(by_rule[name] / by_gradient[name] - 1) for name in by_rule) > 0.1


def test_kl_is_the_fisher_information_under_the_rules():
    graph, calibration, reference = make_inputs("head")
    got = relp(graph, calibration, reference, metric="kl")
    assert got == fisher(by_rules(graph), calibration, reference) != fisher(graph, calibration, reference)


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_runs_give_the_models_answers(family):
    graph_module, pixels = canonical(family), images(2).double()
    graph = EdgeGraph(graph_module, whole_mlps(graph_module))
    assert torch.allclose(by_rules(graph).run(pixels), graph.run(pixels), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "norm",
    [
        nn.LayerNorm(6),
        nn.LayerNorm(6, elementwise_affine=False),
        nn.RMSNorm(6),
        nn.RMSNorm(6, eps=1e-3),
        HeadNorm(L2, 1e-6, (6,), None),
        HeadNorm(RMS, 1e-6, (2, 1, 6), (6,)),
        HeadNorm(LAYER, 1e-6, (6,), (6,)),
        NormOnNorm(nn.LayerNorm(6), nn.RMSNorm(6)),
    ],
    ids=repr,
)
def test_a_norms_scale_is_constant(norm):
    """Then the norm is linear: a change of x by itself, which doubles it, moves the output by all but the shift."""
    norm = norm.double()
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.normal_()
        if isinstance(norm, NormOnNorm):
            norm.first.bias.zero_()
    x = torch.randn(3, 2, 5, 6, dtype=torch.float64, requires_grad=True)
    linear = _linear(norm)
    output = linear(x)
    assert torch.allclose(output, norm(x), rtol=1e-9)
    _, tangent = torch.autograd.functional.jvp(linear, x, x)
    shift = getattr(norm, "bias", None)
    assert torch.allclose(tangent, output if shift is None else output - shift, rtol=1e-6, atol=1e-8)
    # Were the scale not constant, a change by x itself would move nothing.
    assert float(torch.autograd.functional.jvp(norm, x, x)[1].abs().max()) < 1e-2 * float(tangent.abs().max())


def test_an_activation_carries_its_whole_input_and_a_gate_shares_it():
    x = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    plain, gated = Mlp(6, 4, "gelu", bias=False).double(), GatedMlp(6, 4, "silu", (False, False)).double()
    for module, expected in ((plain, F.gelu(plain.fc1(x))), (gated, F.silu(gated.gate(x)) * gated.up(x))):
        ruled = RelevantNeurons(module)
        output, tangent = torch.autograd.functional.jvp(ruled.inner, x, x)
        assert torch.equal(output, expected)
        # Both factors are linear in x under the rules, and each has half.
        assert torch.allclose(tangent, output, rtol=1e-4)


def test_inner_norms_are_under_the_rule_too():
    graph = by_rules(make_graph("head", "timm-norms-inside"))
    cores = [stage.module.core for stage in graph.stages if hasattr(stage.module, "core")]
    assert cores and all(isinstance(core.out_norm, LinearNorm) for core in cores)
    mlps = [stage.module for stage in graph.stages if isinstance(stage.module, RelevantNeurons)]
    assert mlps and all(isinstance(mlp.hidden_norm, LinearNorm) for mlp in mlps)

"""Other operators, the same logits: every form of every kind of graph, and what the rules leave alone."""

from collections import Counter

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from passes.base import run_passes
from passes.dialect import Attention
from passes.fold_biases import FoldBiases
from passes.fold_norms import FoldNorms
from passes.merge_tokens import MergeBySchedule
from passes.pack_qkv import PackQkv
from passes.token_schedule import TokenSchedule
from tests.support.checks import canonical, plan_of
from tests.support.families import images
from vitfx.deploy.export import to_onnx
from vitfx.deploy.onnx_forms import FORMS, to_form
from vitfx.graph.verify import rewrite

PIXELS = images(3)
OPERATOR = {
    "exported": ("", "Attention"),
    "standard": ("", "Attention"),
    "standard-packed": ("", "Attention"),
    "multihead": ("com.microsoft", "MultiHeadAttention"),
    "multihead-packed": ("com.microsoft", "MultiHeadAttention"),
    "packed": ("com.microsoft", "Attention"),
}


def exported(graph_module, packed):
    graph_module = graph_module.float().eval()
    lowered = run_passes(graph_module, [PackQkv()]).graph_module if packed else graph_module
    return to_onnx(lowered, PIXELS[:2], {"vitfx": "0"}), graph_module


@pytest.fixture(scope="module")
def models():
    """An unpruned graph, one with another number of heads in each layer, each packed or not, with its module."""
    whole = canonical("torchvision")
    plan = plan_of(whole, {"a0": [1], "a1": [0, 2, 3], "m1": range(5), "m2": range(0, 48, 2)}, "position")
    pruned = rewrite(whole, plan).graph_module
    return {
        (pruned_, packed): exported(one, packed)
        for pruned_, one in ((False, whole), (True, pruned))
        for packed in (False, True)
    }


def logits(model, pixels):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"pixels": pixels.numpy()})[0])


def assert_same(model, module):
    for pixels in (PIXELS, PIXELS[:1]):
        with torch.no_grad():
            torch.testing.assert_close(logits(model, pixels), module(pixels), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("pruned", [False, True])
@pytest.mark.parametrize("name", FORMS)
def test_a_form_has_its_operators_and_the_same_logits(models, name, pruned):
    form = FORMS[name]
    model, module = models[pruned, form.packed]
    before = model.SerializeToString()
    made = to_form(model, form, gemm=True).model
    assert model.SerializeToString() == before
    onnx.checker.check_model(made, full_check=True)
    nodes = Counter((node.domain, node.op_type) for node in made.graph.node)
    assert nodes[OPERATOR[name]] == 3
    assert nodes["", "Transpose"] == (13 if name == "exported" else 1)
    assert ("com.microsoft" in {entry.domain for entry in made.opset_import}) == (not form.portable)
    assert all(domain == "" for domain, _ in nodes) == form.portable
    assert not [node for node in made.graph.node if node.op_type == "Constant"]
    assert [(entry.key, entry.value) for entry in made.metadata_props] == [("vitfx", "0")]
    assert_same(made, module)


def test_gemm_takes_the_bias_and_leaves_what_it_cannot_take(models):
    model, module = models[True, False]
    without, made = (to_form(model, FORMS["standard"], gemm=gemm) for gemm in (False, True))
    count = {
        key: Counter(node.op_type for node in one.model.graph.node) for key, one in (("no", without), ("yes", made))
    }
    # Of 18 linear maps in three layers, those with a bias for each token stay as they are.
    assert count["no"]["MatMul"] == 18
    assert count["yes"]["MatMul"] == len(made.refusals) > 0
    assert count["yes"]["Gemm"] == count["no"]["Gemm"] + 18 - len(made.refusals)
    assert all("differs from token to token" in refusal for refusal in made.refusals)
    assert_same(made.model, module)


def test_constants_are_merged_and_what_nothing_reads_goes(models):
    model, _ = models[False, False]
    made = to_form(model, FORMS["standard"], gemm=True).model
    read = {name for node in made.graph.node for name in node.input}
    tensors = {one.name: (tuple(one.dims), one.raw_data) for one in made.graph.initializer}
    assert set(tensors) <= read
    small = [value for value in tensors.values() if len(value[1]) < 1024]
    assert len(small) == len(set(small))


@pytest.fixture(scope="module")
def unlike():
    """A graph two of whose attentions have narrower values and no biases or only some, packed or not, with its
    module."""
    graph_module = canonical("torchvision")
    for name, biases in {"a0": (False, False, False), "a1": (True, False, False)}.items():
        attention = Attention(32, 2, 8, 4, 0.3, biases, (32,)).double()
        setattr(graph_module, name, attention)
        for parameter in attention.parameters():
            nn.init.normal_(parameter, std=0.1)
    return {packed: exported(graph_module, packed) for packed in (False, True)}


@pytest.mark.parametrize("name", ["standard", "multihead", "packed"])
def test_values_of_another_width_and_no_biases(unlike, name):
    model, module = unlike[FORMS[name].packed]
    made = to_form(model, FORMS[name], gemm=True)
    assert sum(node.op_type == OPERATOR[name][1] for node in made.model.graph.node) == 3
    assert_same(made.model, module)


class Masked(nn.Module):
    """Attention that is not the plain one."""

    def __init__(self, **more):
        super().__init__()
        self.q, self.head, self.more = nn.Linear(8, 8), nn.Linear(8, 3), more

    def forward(self, x):
        q = self.q(x.flatten(2)[:, :, :8]).unflatten(-1, (2, 4)).transpose(1, 2)
        attended = nn.functional.scaled_dot_product_attention(q, q, q, **self.more)
        return self.head(attended.transpose(1, 2).flatten(2)).mean(1)


@pytest.mark.parametrize("more", [{"is_causal": True}, {"attn_mask": torch.zeros(3, 3)}])
def test_attention_with_a_mask_is_left_alone_and_said_so(more):
    module = Masked(**more).eval()
    made = to_form(to_onnx(module, PIXELS[:2], {}), FORMS["multihead"], gemm=True)
    assert not [node for node in made.model.graph.node if node.domain]
    # One that comes as an input is no match at all.
    assert any("has a mask" in refusal for refusal in made.refusals) == ("is_causal" in more)
    assert_same(made.model, module)


def test_biases_that_were_folded_leave_products_alone():
    graph_module = run_passes(canonical("torchvision"), [FoldBiases()]).graph_module
    model, module = exported(graph_module, False)
    made = to_form(model, FORMS["standard"], gemm=True).model
    nodes = Counter(node.op_type for node in made.graph.node)
    assert nodes["MatMul"] == 6  # keys and values of three layers
    assert_same(made, module)


@pytest.fixture(scope="module")
def merging():
    """Tokens merge behind a0 and a1, whose keys are read for that; a1 and a2 know the sizes."""
    whole = canonical("torchvision")
    schedule = TokenSchedule(((0, 3), (1, 2)))
    merged = run_passes(whole, [MergeBySchedule(schedule, PIXELS)]).graph_module
    return {packed: exported(merged, packed) for packed in (False, True)}


@pytest.mark.parametrize("name", FORMS)
def test_forms_of_merged_tokens(merging, name):
    """A fused projection does not give keys away: such an attention keeps its products apart."""
    form = FORMS[name]
    model, module = merging[form.packed]
    made = to_form(model, form, gemm=True).model
    onnx.checker.check_model(made, full_check=True)
    nodes = Counter((node.domain, node.op_type) for node in made.graph.node)
    keyed = {"packed": ("com.microsoft", "MultiHeadAttention")}.get(name, OPERATOR[name])
    assert nodes[keyed] >= 2
    assert nodes[OPERATOR[name]] == (1 if name == "packed" else 3)
    assert not [node for node in made.graph.node if "Scatter" in node.op_type]
    assert_same(made, module)


def test_norms_without_a_scale_get_one_for_each_channel():
    """By torch's exporter theirs is as large as the stream, and made anew in each run."""
    graph_module = run_passes(canonical("timm-rms-swiglu-qk-norm"), [FoldNorms()]).graph_module
    model, graph_module = exported(graph_module, packed=False)
    formed = to_form(model, FORMS["exported"], gemm=False)
    weights = {weight.name: list(weight.dims) for weight in formed.model.graph.initializer}
    norms = [node for node in formed.model.graph.node if node.op_type == "RMSNormalization"]
    assert len(norms) >= 7 and all(len(weights[node.input[1]]) == 1 for node in norms)
    assert not any(node.op_type == "ConstantOfShape" for node in formed.model.graph.node)
    assert formed.refusals == ()
    session = onnxruntime.InferenceSession(formed.model.SerializeToString(), providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = graph_module(PIXELS)
    (got,) = session.run(None, {"pixels": PIXELS.numpy()})
    assert float((torch.from_numpy(got) - expected).abs().max() / expected.abs().max()) < 1e-5

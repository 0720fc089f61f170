import pytest
import torch
from torch import nn

import vitfx
from passes.aten import aten, cut_points, data_nodes
from passes.base import run_passes
from passes.remove_no_ops import RemoveNoOps
from tests.support.checks import canonical
from tests.support.families import HandWritten, images, make, randomised
from vitfx.graph.trace import aten_graph, first_line, to_canonical, trace
from vitfx.support.errors import UserError


@pytest.fixture
def anew(monkeypatch):
    """Traces are made, not taken from those of other tests."""
    monkeypatch.setattr("vitfx.graph.trace.aten_graph", aten_graph)


def test_a_trace_is_the_model_at_any_batch(anew):
    model = make("torchvision")
    traced = trace(model, images(2))
    with torch.no_grad():
        for count in (1, 2, 9):
            torch.testing.assert_close(traced(images(count)), model(images(count)))


def test_identities_are_dropped_and_the_rest_stays():
    model = make("hf-vit-eager")
    traced = trace(model, images(2))
    result = run_passes(traced, [RemoveNoOps()])
    targets = [node.target for node in result.graph_module.graph.nodes]
    assert result.changed
    assert aten.dropout.default not in targets
    assert all(node.args[2:] == () for node in result.graph_module.graph.nodes if node.target is aten.softmax.int)
    assert aten._assert_tensor_metadata.default not in targets
    assert aten.clone.default not in targets, "older versions of torch make one of every dropout"
    assert targets.count(aten.softmax.int) == 3
    with torch.no_grad():
        assert torch.equal(result.graph_module(images(3)), traced(images(3)))
    assert not run_passes(result.graph_module, [RemoveNoOps()]).changed


def test_cut_points_are_what_every_path_passes():
    """Brute force: a node is a cut point if the output can't be reached from the input without it."""
    graph_module = run_passes(trace(make("hand-written"), images(2)), [RemoveNoOps()]).graph_module
    nodes = data_nodes(graph_module)[:-1]

    def reached_without(gone):
        seen = set()
        for node in nodes:
            if node is not gone and (node is nodes[0] or any(source in seen for source in node.all_input_nodes)):
                seen.add(node)
        return nodes[-1] in seen

    assert cut_points(nodes) == [node for node in nodes if not reached_without(node)]


def test_nothing_is_written_in_place(anew):
    targets = {str(node.target) for node in trace(make("careless"), images(2)).graph.nodes}
    assert not any(target.partition(".")[2].partition(".")[0].endswith("_") for target in targets), targets
    assert not targets & {"aten.einsum.default", "aten.view.default", "aten.dropout.default"}


def test_the_fast_path_is_put_back(anew):
    before = torch.backends.mha.get_fastpath_enabled()
    trace(make("torchvision"), images(2))
    assert torch.backends.mha.get_fastpath_enabled() == before


class FixedBatch(HandWritten):
    def forward(self, x):
        return super().forward(x.reshape(2, 3, 32, 32))


class BranchesOnTheBatch(HandWritten):
    def forward(self, x):
        return super().forward(x if x.shape[0] > 3 else 2 * x)


class BranchesOnPixels(HandWritten):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


class NoLogits(nn.Module):
    def forward(self, x):
        return x


@pytest.mark.parametrize(
    ("model", "pixels", "reason"),
    [
        (FixedBatch(), images(2), r"forward\(\) fixes or limits the batch size"),
        (BranchesOnTheBatch(), images(2), r"forward\(\) fixes or limits the batch size"),
        (BranchesOnPixels(), images(2), r"torch\.export can't trace the model: \S"),
        (make("torchvision"), images(2)[..., :16], "does not take images of 3×32×16"),
        (NoLogits(), images(2), "it is no pre-LN ViT"),
    ],
)
def test_what_can_not_be_traced_is_refused(model, pixels, reason):
    with pytest.raises(UserError, match=reason):
        to_canonical(randomised(model), pixels)


def test_weights_of_another_type_than_the_images_are_refused():
    with pytest.raises(UserError, match=r"has torch.float64 weights and the images are torch.float32: .*float\(\)"):
        to_canonical(make("torchvision").double(), images(2))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("pixels", [torch.float32, None])
def test_half_precision_is_refused_before_any_work(dtype, pixels):
    sentence = rf"^the model has {dtype} weights, .*: convert it to float32 with model.float\(\)$"
    model = make("torchvision").to(dtype)
    with pytest.raises(UserError, match=sentence):
        vitfx.prune(model, images(8, pixels or dtype))
    with pytest.raises(UserError, match=sentence):
        to_canonical(canonical().to(dtype), images(2, pixels or dtype))


def test_an_error_without_a_message_is_named_by_its_class():
    assert first_line(RuntimeError()) == "RuntimeError"
    assert first_line(ValueError("\n  first.\nsecond")) == "first"


def test_damaged_weights_are_refused():
    model = make("torchvision")
    with torch.no_grad():
        model.heads.head.weight[0, 0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        to_canonical(model, images(2))

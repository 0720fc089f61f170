"""Which rewrites, which form; what the exported file says of itself."""

import json

import pytest
import torch

from tests.support.checks import canonical
from tests.support.families import images
from vitfx.deploy.deployment import NAMES, Deployment, default_deployment, deploy, deploy_forms, read_rewrites
from vitfx.deploy.export import compare_onnx, write_onnx
from vitfx.deploy.onnx_forms import FORMS
from vitfx.images.preprocess import Preprocess
from vitfx.support.errors import UserError

PIXELS = images(3)


def test_rewrites_by_name():
    assert read_rewrites("all") == NAMES
    assert read_rewrites("none") == ()
    assert read_rewrites("gemm, fold_norms") == ("fold_norms", "gemm")


@pytest.mark.parametrize(
    ("text", "reason"),
    [("fold_norm", "fold_norm is not a rewrite"), ("absorb_keys", "does nothing without narrow_to_cls")],
)
def test_other_names_are_refused(text, reason):
    with pytest.raises(UserError, match=reason):
        read_rewrites(text)


def test_the_form_by_default():
    cpu, gpu = torch.device("cpu"), torch.empty(0, device="meta").device
    assert default_deployment(NAMES, cpu, portable=False).form.name == "standard"
    assert default_deployment((), cpu, portable=False).form.name == "exported"
    assert default_deployment(NAMES, gpu, portable=True).form.portable


def test_packing_is_for_forms_that_want_it():
    assert "pack_qkv" not in Deployment(NAMES, FORMS["standard"]).graph_rewrites
    assert "pack_qkv" in Deployment(NAMES, FORMS["packed"]).graph_rewrites
    assert "gemm" not in Deployment(NAMES, FORMS["packed"]).graph_rewrites


def test_the_file_says_what_was_done(tmp_path):
    graph_module = canonical("torchvision").float()
    deployed = deploy(graph_module, default_deployment(NAMES, PIXELS.device, portable=True), PIXELS, {"vitfx": "0"})
    told = {entry.key: entry.value for entry in deployed.model.metadata_props}
    assert told["vitfx"] == "0"
    assert json.loads(told["deployment"])["form"] == "standard"
    assert not [node for node in deployed.model.graph.node if node.op_type in ("Shape", "Expand")]
    write_onnx(deployed.model, tmp_path / "small.onnx")
    assert compare_onnx(tmp_path / "small.onnx", graph_module, PIXELS) < 1e-5


def test_several_forms_are_of_one_graph_each():
    forms = [FORMS["standard"], FORMS["packed"], FORMS["multihead"]]
    deployed = deploy_forms(canonical().float(), Deployment(NAMES, forms[0]), forms, PIXELS, {})
    assert list(deployed) == [form.name for form in forms]
    assert deployed["standard"].lowered is deployed["multihead"].lowered
    assert "pack_qkv" in deployed["packed"].lowered.applied


def test_plain_pixels_are_said_in_the_preprocessing():
    preprocess = Preprocess((32, 32))
    plain = Deployment(NAMES, FORMS["standard"], preprocess)
    assert plain.preprocess(preprocess).mean == (0.0, 0.0, 0.0)
    assert plain.preprocess(preprocess).std == (1.0, 1.0, 1.0)
    assert Deployment(NAMES, FORMS["standard"]).preprocess(preprocess) == preprocess
    image = (torch.rand(3, 32, 32) * 255).to(torch.uint8)
    assert float(plain.preprocess(preprocess)(image).max()) <= 1

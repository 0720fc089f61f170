import errno
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer

import vitfx.deploy.export
from tests.support.exports import to_onnx
from vitfx.deploy.export import ExportMismatch, compare_onnx, export_checked, export_onnx
from vitfx.deploy.runtime import open_session
from vitfx.support.errors import UserError
from vitfx.support.files import WriteError


@pytest.fixture(autouse=True)
def _each_export_anew(monkeypatch):
    monkeypatch.setattr(vitfx.deploy.export, "to_onnx", to_onnx)


def small_vit(seed: int = 0) -> VisionTransformer:
    torch.manual_seed(seed)
    vit = VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=10
    )
    # torchvision starts the head at zero, and a model that only says zero is no test of anything.
    nn.init.normal_(vit.heads.head.weight)
    return vit.eval()


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "vit.onnx"
    export_onnx(small_vit(), path, torch.randn(2, 3, 32, 32), {"vitfx": "0.0", "tau": "0.05"})
    return path


def test_file_is_one_named_dynamic_and_checked(exported):
    model = onnx.load(exported, load_external_data=False)
    onnx.checker.check_model(model, full_check=True)
    assert [item.name for item in exported.parent.iterdir()] == ["vit.onnx"]
    assert [(value.name, value.type.tensor_type.shape.dim[0].dim_param) for value in model.graph.input] == [
        ("pixels", "batch")
    ]
    assert [(value.name, value.type.tensor_type.shape.dim[0].dim_param) for value in model.graph.output] == [
        ("logits", "batch")
    ]
    assert next(opset.version for opset in model.opset_import if opset.domain == "") == 23
    metadata = {entry.key: entry.value for entry in model.metadata_props}
    assert len(metadata.pop("digest")) == 64
    assert metadata == {"vitfx": "0.0", "tau": "0.05"}
    assert [node.op_type for node in model.graph.node].count("Attention") == 2


def test_file_tells_nothing_of_the_machine_that_wrote_it(exported):
    assert b".py" not in exported.read_bytes()


def test_compare_passes_for_the_module_and_for_no_other(exported):
    pixels = torch.randn(5, 3, 32, 32)
    assert 0 < compare_onnx(exported, small_vit(), pixels) < 1e-5
    with pytest.raises(ExportMismatch, match="differs from torch by"):
        compare_onnx(exported, small_vit(seed=1), pixels)


def test_compare_catches_a_small_change_and_nan(exported):
    pixels = torch.randn(3, 3, 32, 32)
    for change in (1e-3, float("nan")):
        vit = small_vit()
        with torch.no_grad():
            vit.heads.head.bias += change * 10
        with pytest.raises(ExportMismatch):
            compare_onnx(exported, vit, pixels)


def test_compare_catches_another_class_count_and_a_single_image(exported):
    vit = small_vit()
    vit.heads.head = nn.Linear(32, 7)
    with pytest.raises(ExportMismatch, match=r"\(1, 10\) where torch gives \(1, 7\)"):
        compare_onnx(exported, vit, torch.randn(2, 3, 32, 32))
    with pytest.raises(UserError, match="1 image was given"):
        compare_onnx(exported, vit, torch.randn(1, 3, 32, 32))


def test_compare_catches_a_batch_fixed_inside_the_file(exported, tmp_path):
    model = onnx.load(exported)
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    del model.graph.value_info[:]
    onnx.save_model(model, tmp_path / "fixed.onnx")
    with pytest.raises(ExportMismatch, match="does not run on a batch of 1"):
        compare_onnx(tmp_path / "fixed.onnx", small_vit(), torch.randn(2, 3, 32, 32))


def test_module_is_left_as_it_was(tmp_path):
    vit = small_vit().train()
    vit.encoder.ln.eval()
    vit.requires_grad_(False)
    flags = [part.training for part in vit.modules()]
    before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    fast_path = torch.backends.mha.get_fastpath_enabled()
    export_onnx(vit, tmp_path / "vit.onnx", torch.randn(2, 3, 32, 32), {})
    assert [part.training for part in vit.modules()] == flags
    assert torch.backends.mha.get_fastpath_enabled() == fast_path
    for name, tensor in vit.state_dict().items():
        assert torch.equal(tensor, before[name]) and tensor.dtype == torch.float32
    compare_onnx(tmp_path / "vit.onnx", vit, torch.randn(2, 3, 32, 32))
    assert vit.training


def test_a_module_in_training_mode_is_exported_at_rest(tmp_path):
    """Its dropout, and the statistics of its batches, are no part of the file."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 4))
    pixels = torch.randn(5, 3, 2, 2)
    module.train()(torch.randn(9, 3, 2, 2))
    export_onnx(module, tmp_path / "resting.onnx", pixels[:2], {})
    assert module.training and module[2].num_batches_tracked == 1
    # ONNX Runtime would leave it out, other runtimes draw.
    assert "Dropout" not in [node.op_type for node in onnx.load(tmp_path / "resting.onnx").graph.node]
    expected = module.eval()(pixels)
    found = open_session(tmp_path / "resting.onnx", torch.device("cpu")).run(pixels)
    torch.testing.assert_close(found, expected)


def test_a_file_that_differs_is_removed(tmp_path):
    module, other = (nn.Sequential(nn.Flatten(), nn.Linear(12, 4)) for _ in range(2))
    pixels = torch.randn(3, 3, 2, 2)
    model = to_onnx(module, pixels, {})
    with pytest.raises(ExportMismatch, match="differs from torch by"):
        export_checked(model, tmp_path / "other.onnx", other, pixels)
    assert not list(tmp_path.iterdir())
    assert export_checked(model, tmp_path / "own.onnx", module, pixels) < 1e-5


def test_compare_catches_more_logits_than_the_modules(exported):
    vit = small_vit()
    vit.heads.head = nn.Linear(32, 1)
    with pytest.raises(ExportMismatch, match=r"\(1, 10\) where torch gives \(1, 1\)"):
        compare_onnx(exported, vit, torch.randn(2, 3, 32, 32))


def test_double_precision_module_exports_as_such(tmp_path):
    vit = nn.Sequential(nn.Flatten(), nn.Linear(12, 4)).double()
    export_onnx(vit, tmp_path / "vit.onnx", torch.randn(2, 3, 2, 2).double(), {})
    assert compare_onnx(tmp_path / "vit.onnx", vit, torch.randn(3, 3, 2, 2).double()) < 1e-14


def test_graph_module_of_called_modules_exports(tmp_path):
    graph_module = torch.fx.symbolic_trace(nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.GELU(), nn.Linear(8, 4)))
    export_onnx(graph_module, tmp_path / "graph.onnx", torch.randn(2, 3, 2, 2), {})
    assert compare_onnx(tmp_path / "graph.onnx", graph_module, torch.randn(7, 3, 2, 2)) < 1e-5


class FixedBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        return self.head(x.reshape(2, 12))


class AcrossBatch(FixedBatch):
    def forward(self, x):
        return self.head(x.flatten(1).mean(0, keepdim=True))


@pytest.mark.parametrize(
    ("module", "sentence"),
    [
        (FixedBatch(), r"forward\(\) fixes or limits the batch size: .* x\.shape\[0\]"),
        (AcrossBatch(), "first must be any batch size"),
    ],
)
def test_fixed_batch_is_refused_and_nothing_written(module, sentence, tmp_path):
    with pytest.raises(UserError, match=sentence) as caught:
        export_onnx(module, tmp_path / "fixed.onnx", torch.randn(2, 3, 2, 2), {})
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_single_example_and_too_large_model_are_refused(tmp_path):
    with pytest.raises(UserError, match="example batch has 1 image"):
        export_onnx(small_vit(), tmp_path / "vit.onnx", torch.randn(1, 3, 32, 32), {})
    with torch.device("meta"):
        large = nn.Linear(2**15, 2**15)
    with pytest.raises(UserError, match=r"4\.0 GiB and one ONNX file holds 2 GiB"):
        export_onnx(large, tmp_path / "large.onnx", torch.randn(2, 2**15), {})
    assert not list(tmp_path.iterdir())


def test_failure_while_writing_leaves_the_older_file(tmp_path, monkeypatch):
    target = tmp_path / "linear.onnx"
    target.write_bytes(b"older")

    def fail(self, other):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(WriteError, match=r"linear.onnx can't be written \(No space left on device\)"):
        export_onnx(nn.Sequential(nn.Flatten(), nn.Linear(12, 4)), target, torch.randn(2, 3, 2, 2), {})
    assert target.read_bytes() == b"older"

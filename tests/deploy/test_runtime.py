import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from onnxruntime.capi import onnxruntime_pybind11_state as ort_errors
from torch import nn

from vitfx.deploy.export import export_onnx
from vitfx.deploy.runtime import CPU_PROVIDER, CUDA_PROVIDER, open_session, providers
from vitfx.support.devices import GPU
from vitfx.support.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.GELU(), nn.Linear(8, 4)).eval()


@pytest.fixture(scope="module")
def path(linear, tmp_path_factory):
    target = tmp_path_factory.mktemp("onnx") / "linear.onnx"
    export_onnx(linear, target, torch.randn(2, 3, 2, 2), {"tau": "0.05"})
    return target


def test_providers_without_a_gpu():
    assert providers(CPU) == [(CPU_PROVIDER, {})]
    with pytest.raises(UserError, match="it needs a GPU"):
        providers(CPU, cuda_graph=True)


def test_providers_with_a_gpu_keep_the_cpu_behind_it():
    second = torch.device(GPU, 1)
    options = {"device_id": "1", "enable_cuda_graph": "0", "use_tf32": "0"}
    assert providers(second) == [(CUDA_PROVIDER, options), (CPU_PROVIDER, {})]
    assert providers(second, cuda_graph=True)[0][1]["enable_cuda_graph"] == "1"
    assert providers(torch.device(GPU))[0][1]["device_id"] == "0"


@pytest.mark.parametrize("batch", [1, 5])
def test_run_gives_torchs_logits(path, linear, batch):
    pixels = torch.randn(batch, 3, 2, 2)
    model = open_session(path, CPU, threads=1)
    assert (model.provider, model.device, model.dtype) == (CPU_PROVIDER, CPU, torch.float32)
    assert model.input_shape == ("batch", 3, 2, 2) and model.output_shape == ("batch", 4)
    assert model.metadata == {"tau": "0.05", "digest": model.metadata["digest"]}
    torch.testing.assert_close(model.run(pixels), linear(pixels))
    torch.testing.assert_close(model.run(pixels.numpy().astype(np.float64)), linear(pixels))
    for other in (open_session(path.read_bytes(), CPU), open_session(path, CPU, layouts=False)):
        torch.testing.assert_close(other.run(pixels), linear(pixels))


def test_bound_run_computes_into_its_own_buffers(path, linear):
    pixels = torch.randn(3, 3, 2, 2)
    bound = open_session(path, CPU).bind(pixels.permute(0, 1, 3, 2))
    torch.testing.assert_close(bound.logits, linear(pixels.permute(0, 1, 3, 2)))
    others = torch.randn(3, 3, 2, 2)
    bound.pixels.copy_(others)
    assert bound() is None
    torch.testing.assert_close(bound.logits, linear(others))


def test_fixed_batch_size_takes_no_other(path, linear):
    model = open_session(path, CPU, fixed={"batch": 3})
    pixels = torch.randn(3, 3, 2, 2)
    assert model.input_shape == (3, 3, 2, 2) and model.output_shape == (3, 4)
    torch.testing.assert_close(model.bind(pixels).logits, linear(pixels))
    for refused in (model.run, model.bind):
        with pytest.raises(UserError, match=r"takes \[3, 3, 2, 2\] and refused \[2, 3, 2, 2\]"):
            refused(pixels[:2])


def test_wrong_image_size_is_one_sentence(path):
    with pytest.raises(UserError, match=r"refused \[2, 3, 5, 2\]") as caught:
        open_session(path, CPU).run(torch.randn(2, 3, 5, 2))
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_silent_fallback_is_refused(path):
    with pytest.raises(UserError, match=f"asked for {CUDA_PROVIDER} on {GPU}:0 and took {CPU_PROVIDER}"):
        open_session(path, torch.device(GPU, 0))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_gpu_gives_torchs_logits(path, linear, cuda_graph):
    pixels = torch.randn(4, 3, 2, 2)
    model = open_session(path, torch.device(GPU, 0), cuda_graph=cuda_graph, fixed={"batch": 4})
    bound = model.bind(torch.zeros_like(pixels))
    bound.pixels.copy_(pixels)
    torch.cuda.synchronize()
    bound()
    assert model.provider == CUDA_PROVIDER
    torch.testing.assert_close(bound.logits.cpu(), linear(pixels), atol=1e-3, rtol=1e-3)


def test_cuda_graph_without_a_batch_size_is_refused(path):
    with pytest.raises(UserError, match="without a fixed batch size"):
        open_session(path, torch.device(GPU, 0), cuda_graph=True)


def test_files_that_are_no_model(tmp_path):
    with pytest.raises(UserError, match="is not a file"):
        open_session(tmp_path / "missing.onnx", CPU)
    (tmp_path / "text.onnx").write_text("not a model")
    with pytest.raises(UserError, match=r"cannot open .*text\.onnx"):
        open_session(tmp_path / "text.onnx", CPU)


def test_models_of_another_form_are_refused():
    def model(inputs, kind, outputs=1):
        values = [onnx.helper.make_tensor_value_info(f"x{i}", kind, ["n", "m"]) for i in range(inputs)]
        nodes = [onnx.helper.make_node("Identity", ["x0"], [f"y{i}"]) for i in range(outputs)]
        outs = [onnx.helper.make_tensor_value_info(f"y{i}", kind, ["n", "k"]) for i in range(outputs)]
        graph = onnx.helper.make_graph(nodes, "g", values, outs)
        opset = onnx.helper.make_opsetid("", 23)
        return onnx.helper.make_model(graph, opset_imports=[opset], ir_version=10).SerializeToString()

    with pytest.raises(UserError, match="2 inputs and 1 outputs"):
        open_session(model(2, onnx.TensorProto.FLOAT), CPU)
    with pytest.raises(UserError, match="1 inputs and 2 outputs"):
        open_session(model(1, onnx.TensorProto.FLOAT, outputs=2), CPU)
    with pytest.raises(UserError, match=r"tensor\(int64\)"):
        open_session(model(1, onnx.TensorProto.INT64), CPU)
    with pytest.raises(UserError, match="only the batch may vary"):
        open_session(model(1, onnx.TensorProto.FLOAT), CPU).bind(torch.zeros(3, 2))


def huge(rows: int) -> bytes:
    """A model that needs 4 PiB for an image, more than any machine can address."""
    shape = [1, 2**16, 2**16, rows]
    nodes = [
        helper.make_node("Expand", ["pixels", "shape"], ["wide"]),
        helper.make_node("ReduceSum", ["wide", "axes"], ["sum"]),
        helper.make_node("Reshape", ["sum", "rows"], ["logits"]),
    ]
    values = {"shape": shape, "rows": [-1, 1], "axes": [1, 2, 3]}
    constants = [numpy_helper.from_array(np.array(value), name) for name, value in values.items()]
    pixels = helper.make_tensor_value_info("pixels", 1, ["batch", 1, 1, 1])
    logits = helper.make_tensor_value_info("logits", 1, ["batch", 1])
    graph = helper.make_graph(nodes, "huge", [pixels], [logits], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9).SerializeToString()


@pytest.mark.parametrize("batch", [1, 3])
def test_a_lack_of_memory_is_one_sentence(batch, capfd):
    model = open_session(huge(2**18), CPU)
    for refused in (model.run, model.bind):
        with pytest.raises(
            UserError, match=rf"out of memory on cpu with a batch of \[{batch}, 1, 1, 1\]: give a smaller"
        ):
            refused(torch.ones(batch, 1, 1, 1))
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (MemoryError("std::bad_alloc"), "ran out of memory on cpu while it opened the ONNX model: end other programs"),
        (RuntimeError("Exception: std::bad_alloc"), "ran out of memory on cpu while it opened"),
        (ort_errors.RuntimeException("Failed to allocate memory for requested buffer"), "ran out of memory on cpu"),
        (ort_errors.EPFail("no kernel"), "cannot open the ONNX model: no kernel"),
        (ort_errors.NotFound("no library"), "cannot open the ONNX model: no library"),
    ],
)
def test_a_session_that_can_not_be_made_is_one_sentence(error, sentence, monkeypatch):
    def refuse(*given, **named):
        raise error

    monkeypatch.setattr("onnxruntime.InferenceSession", refuse)
    with pytest.raises(UserError, match=sentence):
        open_session(huge(1), CPU)

from dataclasses import replace

import onnx
import pytest
import torch
from torch import nn

from benchmarks import workloads
from benchmarks.contenders import _with_one_preprocess, load_contenders
from benchmarks.workloads import UnavailableError, Variant, forward, prepare, variants
from tests.support.benchmark_folder import COMPILED, CPU, EAGER, ONNX, OPENVINO, linear, write_folder
from vitfx.deploy.lowering import Normalising
from vitfx.deploy.openvino_runtime import is_installed
from vitfx.deploy.quantize import to_float16
from vitfx.deploy.runtime import open_session
from vitfx.support.devices import GPU
from vitfx.support.errors import UserError


@pytest.fixture(scope="module")
def out(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("vit-pruned"))


def test_variants_of_a_machine_without_and_with_a_gpu():
    assert variants(workloads.RUNTIMES, CPU) == (EAGER, COMPILED, OPENVINO, ONNX)
    assert variants(["onnxruntime", "torch"], CPU) == (EAGER, ONNX)
    gpu = torch.device(GPU, 0)
    labels = [way.label for way in variants(["onnxruntime"], gpu)]
    assert labels == ["onnxruntime cpu fp32"] + [
        f"onnxruntime {GPU}:0 {end}" for end in ("fp32", "fp32 graph", "fp16", "fp16 graph")
    ]
    with pytest.raises(UserError, match="'tensorrt' is not one of torch"):
        variants(["torch", "tensorrt"], CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("cuda_graph", [False, True])
def test_silent_fallback_is_a_reason_and_no_time(out, cuda_graph):
    contender = load_contenders([str(out)])[0]
    with pytest.raises(UnavailableError, match="took CPUExecutionProvider"):
        prepare(
            Variant("onnxruntime", torch.device(GPU, 0), False, cuda_graph), contender, torch.zeros(2, 3, 16, 16), 1
        )


def assert_close_in_half(logits, expected):
    torch.testing.assert_close(logits, expected, atol=2e-2 * float(expected.abs().max()), rtol=0)


def test_half_precision_is_float16_inside_and_close(out):
    original = (out / "baseline.onnx").read_bytes()
    half = to_float16(onnx.load_model_from_string(original)).SerializeToString()
    assert len(half) < 0.7 * len(original)
    pixels = torch.randn(4, 3, 16, 16)
    expected, session = open_session(original, CPU).run(pixels), open_session(half, CPU, layouts=False)
    logits = session.run(pixels)
    assert session.dtype == logits.dtype == torch.float32
    assert not torch.equal(logits, expected)
    assert_close_in_half(logits, expected)


def test_half_precision_binds(out):
    contender = load_contenders([str(out)])[0]
    pixels = torch.randn(2, 3, 16, 16)
    bound = prepare(Variant("onnxruntime", CPU, half=True), contender, pixels, 1)
    assert_close_in_half(bound.logits, open_session(contender.onnx, CPU).run(pixels))


def test_compiled_run_is_compiled():
    class Traced(nn.Module):
        def forward(self, x):
            return x.flatten(1).relu() + (1 if torch.compiler.is_compiling() else 0)

    seen = []
    module = Traced()
    module.register_forward_hook(lambda _, __, output: seen.append(output))
    torch.compiler.reset()
    run = prepare(COMPILED, linear("a", module), torch.zeros(2, 3), 1)
    run()
    assert torch.equal(seen[-1], torch.ones(2, 3))


@pytest.mark.filterwarnings("ignore:dynamo_pgo")
def test_missing_compiler_is_a_reason_and_no_end(monkeypatch, out):
    from torch._inductor import config

    torch.compiler.reset()
    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setattr(config, "force_disable_caches", True)
    contender = load_contenders([str(out)])[1]
    with pytest.raises(UnavailableError, match="ompiler") as caught:
        prepare(COMPILED, contender, torch.zeros(2, 3, 16, 16), 1)
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 100


def test_graph_break_is_not_called_compiled():
    class Breaks(nn.Module):
        def forward(self, x):
            torch._dynamo.graph_break()
            return x

    torch.compiler.reset()
    with pytest.raises(UnavailableError):
        prepare(COMPILED, linear("a", Breaks()), torch.zeros(2, 3), 1)


def test_defect_of_a_model_in_torch_is_not_hidden():
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        prepare(EAGER, linear("a", nn.Linear(4, 2)), torch.zeros(2, 3), 1)


def test_a_model_of_plain_pixels_gets_plain_pixels(out, tmp_path):
    """The other model normalises by itself: given the first one's images, it answers as on its own."""
    first = load_contenders([str(out)])[0]
    plain = replace(first.preprocess, mean=(0.0,) * 3, std=(1.0,) * 3)
    other = replace(first, name="plain", preprocess=plain, module=Normalising(first.module, first.preprocess))
    one, two = _with_one_preprocess([first, other])
    assert one.own is None
    assert two.preprocess == first.preprocess
    assert two.own == plain
    pixels = torch.randn(2, 3, 16, 16)
    way = Variant("torch", CPU)
    torch.testing.assert_close(forward(way, two, 1)(pixels), forward(way, one, 1)(pixels))
    with pytest.raises(UserError, match="prepare images differently"):
        _with_one_preprocess([first, replace(other, preprocess=replace(plain, size=(8, 8)))])


def test_openvino_answers_or_says_what_to_install(out):
    contender, way = load_contenders([str(out)])[0], OPENVINO
    pixels = torch.randn(2, 3, 16, 16)
    if not is_installed():
        for use in (lambda: prepare(way, contender, pixels, 1), lambda: forward(way, contender, 1)):
            with pytest.raises(UnavailableError, match=r"pip install 'vitfx\[openvino\]'$"):
                use()
        return
    prepare(way, contender, pixels, 1)()
    expected = forward(ONNX, contender, 1)(pixels)
    torch.testing.assert_close(forward(way, contender, 1)(pixels), expected, rtol=1e-4, atol=1e-4)

"""int8: the file runs at any batch, answers as the float32 model does, and stays float32 where it must."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import numpy_helper

from passes.base import run_passes
from passes.fold_norms import FoldNorms
from tests.support.checks import canonical
from tests.support.families import images
from vitfx.deploy.export import to_onnx, write_onnx
from vitfx.deploy.int8_balance import balance_norms, balance_values
from vitfx.deploy.int8_tuning import activations
from vitfx.deploy.int8_weights import PAIR, in_pairs
from vitfx.deploy.onnx_forms import FORMS, to_form
from vitfx.deploy.quantize import TUNINGS, Quantized, to_bfloat16, to_float16, to_int8
from vitfx.deploy.runtime import open_session
from vitfx.images.image_set import Images
from vitfx.support.errors import UserError

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def small(whole: onnx.ModelProto, digits: Images) -> Quantized:
    return to_int8(whole, digits.pixels[:32])


def logits(model: onnx.ModelProto, pixels: torch.Tensor) -> torch.Tensor:
    return open_session(model.SerializeToString(), CPU, threads=1).run(pixels)


def test_it_answers_as_the_float32_model(whole: onnx.ModelProto, small: Quantized, digits: Images) -> None:
    """On images that set no scale. A wrong scale or zero point anywhere leaves a tenth of the answers right."""
    pixels = digits.pixels[32:]
    expected, found = logits(whole, pixels), logits(small.model, pixels)
    assert float((found.argmax(1) == expected.argmax(1)).double().mean()) >= 0.95
    error = float((found - expected).norm() / expected.norm())
    assert 1e-5 < error < 0.1
    torch.testing.assert_close(logits(small.model, pixels[:1]), found[:1], rtol=0, atol=1e-3)


def test_linear_maps_are_int8_and_the_rest_is_not(whole: onnx.ModelProto, small: Quantized) -> None:
    operators = Counter(node.op_type for node in small.model.graph.node)
    assert operators["QuantizeLinear"] > 0
    weights = {one.name: one for one in small.model.graph.initializer}
    matrices = [one for one in weights.values() if one.data_type == onnx.TensorProto.INT8 and len(one.dims) == 2]
    assert len(matrices) == small.quantized > 20
    kept = [node for node in small.model.graph.node if node.name in small.kept]
    assert len(kept) == len(small.kept) and kept[-1].output[0] == small.model.graph.output[0].name
    assert all(weights[node.input[1]].data_type == onnx.TensorProto.FLOAT for node in kept)
    assert len(small.model.SerializeToString()) < 0.5 * len(whole.SerializeToString())


def test_maps_of_one_token_among_many_stay_float32(digits: Images) -> None:
    """They take no time. One of the same weights that reads all 1,280 does."""

    class Narrowed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.one, self.head = (torch.nn.Linear(8, 8) for _ in range(3))

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            tokens = torch.nn.functional.relu(self.wide(pixels.repeat(1, 160, 1, 1).flatten(1, 2)))
            return self.head(torch.nn.functional.relu(self.one(tokens[:, 0])))

    pixels = digits.pixels[:4]
    found = to_int8(to_onnx(Narrowed(), pixels[:2], {}), pixels)
    assert (found.quantized, len(found.kept)) == (1, 2)


def test_a_classifier_that_is_half_of_the_work_stays_float32() -> None:
    """Unless the model is a part of one, whose last map is none."""
    pixels = torch.randn(8, 1, 2, 4, generator=torch.Generator().manual_seed(0))
    first, last = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
    model = to_onnx(torch.nn.Sequential(torch.nn.Flatten(), first, torch.nn.ReLU(), last), pixels[:2], {})
    found = to_int8(model, pixels)
    (kept,) = [node for node in found.exact.graph.node if node.name in found.kept]
    assert found.quantized == 1 and kept.output[0] == found.model.graph.output[0].name
    assert to_int8(model, pixels, keep_last=False).quantized == 2


def test_each_output_channel_has_a_scale(small: Quantized) -> None:
    weights = {one.name: numpy_helper.to_array(one) for one in small.model.graph.initializer}
    for node in small.model.graph.node:
        if node.op_type == "DequantizeLinear" and weights.get(node.input[0], np.zeros(0)).dtype == np.int8:
            matrix, scale = weights[node.input[0]], weights[node.input[1]]
            assert scale.shape == matrix.shape[1:]
            assert np.abs(matrix.astype(int)).max(0).min() >= 63


def test_weights_are_within_what_16_bits_add_up(small: Quantized) -> None:
    """Two products of a uint8 and a weight, neighbours among the inputs, which CPUs without VNNI add in 16 bits."""
    weights = {one.name: numpy_helper.to_array(one) for one in small.model.graph.initializer}
    makers = {name: node for node in small.model.graph.node for name in node.output}
    sums, greatest = [], []
    for node in small.model.graph.node:
        if node.name in small.maps:
            steps = np.abs(weights[makers[node.input[1]].input[0]].astype(np.int64))
            steps = steps.T if any(one.name == "transB" and one.i for one in node.attribute) else steps
            sums.append(255 * (steps[0:-1:2] + steps[1::2]).max())
            greatest.append(steps.max())
    assert max(sums) <= np.iinfo(np.int16).max
    assert max(greatest) > 64, "no weight needs its eighth bit"


@given(
    rows=st.integers(1, 9), columns=st.integers(1, 4), outlier=st.sampled_from([1.0, 40.0]), seed=st.integers(0, 999)
)
@settings(max_examples=60, deadline=None)
def test_rounding_in_pairs_is_nearer_than_seven_bits(rows: int, columns: int, outlier: float, seed: int) -> None:
    """Whatever the matrix: no column's error is above that of seven bits and a scale that clips nothing."""
    matrix = np.random.default_rng(seed).normal(size=(rows, columns)).astype(np.float32)
    matrix[seed % rows] *= outlier
    steps, scale = in_pairs(matrix)
    assert steps.dtype == np.int8 and scale.shape == (columns,)
    sizes = np.abs(np.pad(steps.astype(int), ((0, rows % 2), (0, 0))))
    assert (sizes[0::2] + sizes[1::2]).max() <= PAIR
    coarse = np.abs(matrix).max(0) / 64
    of_seven = np.square(np.round(matrix / coarse) * coarse - matrix).sum(0)
    in_eight = np.square(steps * scale - matrix).sum(0)
    # At a scale that is a little finer some weights may round less luckily.
    assert (in_eight <= np.maximum(of_seven, rows * (coarse / 2) ** 2)).all()


def test_a_column_of_zeros_stays_zero() -> None:
    steps, scale = in_pairs(np.zeros((3, 2), np.float32))
    assert not steps.any() and (scale > 0).all()


def test_the_file_is_valid_and_keeps_its_metadata(small: Quantized, tmp_path: Path) -> None:
    write_onnx(small.model, tmp_path / "int8.onnx")
    assert open_session(tmp_path / "int8.onnx", CPU).metadata["role"] == "pruned"


def test_without_linear_maps_there_is_nothing_to_quantize(digits: Images) -> None:
    class Mean(torch.nn.Module):
        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            return pixels.mean((1, 2))

    model = to_onnx(Mean(), digits.pixels[:2], {})
    with pytest.raises(UserError, match="no linear map is left that int8 would make faster: leave out `precision`"):
        to_int8(model, digits.pixels)


def test_float16_keeps_its_ends_float32(whole: onnx.ModelProto, digits: Images) -> None:
    """ONNX Runtime's CPU provider runs it, slowly."""
    half = to_float16(whole)
    assert {one.data_type for one in half.graph.initializer if len(one.dims) == 2} == {onnx.TensorProto.FLOAT16}
    assert {one.data_type for one in whole.graph.initializer if len(one.dims) == 2} == {onnx.TensorProto.FLOAT}
    session = open_session(half.SerializeToString(), CPU, threads=1, layouts=False)
    assert session.dtype == torch.float32
    expected = logits(whole, digits.pixels[:8])
    error = float((session.run(digits.pixels[:8]) - expected).abs().max() / expected.abs().max())
    assert 1e-5 < error < 1e-2


def test_bfloat16_halves_the_bytes_and_runs_anywhere(whole: onnx.ModelProto, digits: Images) -> None:
    """Every matrix is the nearest in bfloat16; vectors, ends and metadata stay as they are."""
    narrow = to_bfloat16(whole)
    onnx.checker.check_model(narrow)
    assert len(narrow.SerializeToString()) < 0.6 * len(whole.SerializeToString())
    told = {entry.key: entry.value for entry in narrow.metadata_props}
    assert told["precision"] == "bf16" and told["role"] == "pruned"
    wide = open_session(narrow.SerializeToString(), CPU, threads=1)
    assert wide.dtype == torch.float32
    rounded = onnx.ModelProto()
    rounded.CopyFrom(whole)
    for weight in rounded.graph.initializer:
        if weight.data_type == onnx.TensorProto.FLOAT and len(weight.dims) > 1:
            value = torch.from_numpy(numpy_helper.to_array(weight).copy()).bfloat16().float().numpy()
            weight.CopyFrom(numpy_helper.from_array(value, weight.name))
    torch.testing.assert_close(wide.run(digits.pixels), logits(rounded, digits.pixels), rtol=1e-5, atol=1e-5)


def _named(model: onnx.ModelProto) -> tuple[onnx.ModelProto, list[onnx.NodeProto]]:
    """A copy whose nodes have names, and its linear maps."""
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    for index, node in enumerate(copied.graph.node):
        node.name = node.name or f"node_{index}"
    matrices = {weight.name for weight in copied.graph.initializer if len(weight.dims) == 2}
    return copied, [
        node for node in copied.graph.node if node.op_type in ("Gemm", "MatMul") and node.input[1] in matrices
    ]


def test_balancing_moves_scales_and_keeps_the_answers(whole: onnx.ModelProto, digits: Images) -> None:
    pixels = digits.pixels[:32]
    model, linear = _named(whole)
    before = [value for values in activations(model, [linear[1].input[0]], pixels) for value in values.values()]
    assert balance_norms(model, linear, pixels) > 10
    after = [value for values in activations(model, [linear[1].input[0]], pixels) for value in values.values()]
    assert not np.allclose(before[0], after[0], rtol=0.01), "no channel was scaled"
    torch.testing.assert_close(logits(model, pixels), logits(whole, pixels), rtol=1e-4, atol=1e-4)
    used = {name for node in model.graph.node for name in node.input}
    assert all(weight.name in used for weight in model.graph.initializer)


def test_a_norm_that_something_else_reads_keeps_its_scales(whole: onnx.ModelProto, digits: Images) -> None:
    model, linear = _named(whole)
    assert balance_norms(model, linear[:1], digits.pixels[:8]) <= 1
    norm = next(node for node in whole.graph.node if node.op_type == "LayerNormalization")
    shown, maps = _named(whole)
    shown.graph.output.append(onnx.helper.make_empty_tensor_value_info(norm.output[0]))
    assert balance_norms(shown, maps, digits.pixels[:8]) == balance_norms(_named(whole)[0], maps, digits.pixels[:8]) - 1


def test_balancing_values_keeps_the_answers(whole: onnx.ModelProto, digits: Images) -> None:
    """And makes the channels that the next map reads more alike."""
    pixels = digits.pixels[:32]
    standard = to_form(whole, FORMS["standard"], gemm=True).model
    model, linear = _named(standard)
    assert balance_values(model, linear, pixels) == 5, "all but the last, whose result is cut to the class token"
    torch.testing.assert_close(logits(model, pixels), logits(whole, pixels), rtol=1e-4, atol=1e-4)
    (attention, *_) = (node for node in model.graph.node if node.op_type == "Attention")
    (result,) = activations(model, [attention.output[0]], pixels[:16])
    before = next(activations(standard, [attention.output[0]], pixels[:16]))
    spread = [np.ptp(np.log(np.abs(v[attention.output[0]]).max((0, 1)))) for v in (before, result)]
    assert spread[1] < 0.9 * spread[0]


@pytest.mark.parametrize("shown", ["values", "result"])
def test_values_that_something_else_reads_keep_their_scales(whole: onnx.ModelProto, digits: Images, shown: str) -> None:
    model, linear = _named(to_form(whole, FORMS["standard"], gemm=True).model)
    attention = next(node for node in model.graph.node if node.op_type == "Attention")
    name = attention.input[2] if shown == "values" else attention.output[0]
    model.graph.output.append(onnx.helper.make_empty_tensor_value_info(name))
    assert balance_values(model, linear, digits.pixels[:8]) == 4


def test_each_tuning_brings_int8_nearer(whole: onnx.ModelProto, digits: Images) -> None:
    """On images that set nothing, beside the others."""
    expected = logits(whole, digits.pixels[64:])

    def error(tunings: tuple[str, ...]) -> float:
        int8 = to_int8(whole, digits.pixels[:64], tunings=tunings).model
        return float((logits(int8, digits.pixels[64:]) - expected).norm() / expected.norm())

    errors = {left_out: error(tuple(name for name in TUNINGS if name != left_out)) for left_out in ("", *TUNINGS)}
    assert min(errors, key=errors.__getitem__) == "", errors


def test_corrected_biases_give_the_mean_result(whole: onnx.ModelProto, digits: Images) -> None:
    """On the images themselves, the first map's mean result is float32's to half a unit of its bias."""
    pixels = digits.pixels[:64]
    int8 = to_int8(whole, pixels).model
    model, linear = _named(whole)
    first = next(node for node in linear if len(node.input) == 3)
    same = next(node for node in int8.graph.node if node.op_type == "Gemm" and node.output[0] == first.output[0])
    exact = np.concatenate(
        [
            v[first.output[0]].reshape(-1, v[first.output[0]].shape[-1])
            for v in activations(model, [first.output[0]], pixels)
        ]
    )
    coarse = np.concatenate(
        [v[same.output[0]].reshape(-1, exact.shape[1]) for v in activations(int8, [same.output[0]], pixels)]
    )
    assert np.abs(exact.mean(0) - coarse.mean(0)).max() < 1e-3 * np.abs(exact).max()


@pytest.mark.parametrize("formed", [True, False])
def test_norms_without_a_scale_are_balanced_where_they_have_weights(formed: bool) -> None:
    """By torch's exporter, those of RMSNorm are computed; forms make them weights."""
    graph_module = run_passes(canonical("timm-rms-swiglu-qk-norm").float(), [FoldNorms()]).graph_module.eval()
    pixels = images(8)
    model = to_onnx(graph_module, pixels[:2], {})
    model = to_form(model, FORMS["standard"], gemm=False).model if formed else model
    small = to_int8(model, pixels)
    assert small.quantized > 6
    weights = {weight.name: numpy_helper.to_array(weight) for weight in small.model.graph.initializer}
    scales = [weights.get(norm.input[1]) for norm in small.model.graph.node if norm.op_type == "RMSNormalization"]
    assert any(scale is not None and len(set(scale.tolist())) > 1 for scale in scales) == formed
    with torch.no_grad():
        expected = graph_module(pixels)
    assert float((logits(small.model, pixels) - expected).abs().max() / expected.abs().max()) < 0.1

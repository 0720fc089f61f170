import subprocess
import sys

import pytest

from vitfx.pruning.goal import DROP, FLOPS, KL, PARAMETERS, SPEEDUP, Goal, Target, parse_target, reaches
from vitfx.support.errors import UserError


@pytest.mark.parametrize(
    ("kind", "value", "said"),
    [
        (SPEEDUP, 1.0, "`target_speedup` 1 is not faster"),
        (SPEEDUP, float("nan"), "`target_speedup` nan is not a number to aim for"),
        (PARAMETERS, 1.0, "`target_params` 1 is not a share"),
        (FLOPS, 0.0, "`target_flops` 0 is not a share"),
        (DROP, 0.0, "`max_drop` 0 allows nothing"),
        (KL, -1.0, "`max_kl` -1 allows nothing"),
    ],
)
def test_what_is_no_goal_is_refused_by_name_and_value(kind, value, said):
    with pytest.raises(UserError, match=said):
        Goal(kind, value)


def test_a_speed_is_reached_that_falls_short_by_the_promised_share_at_most():
    assert reaches(1.5 * 0.971, 1.5)
    assert not reaches(1.5 * 0.969, 1.5)
    assert Goal(SPEEDUP, 1.5).shortfall(1.5 * 0.969) == "measured 1.45×"


def test_a_goal_reads_as_a_person_says_it():
    assert str(Goal(SPEEDUP, 1.5)) == "1.5× faster"
    assert str(Goal(DROP, 0.5)) == "at most 0.5 points of top-1 lost"
    assert str(Goal(FLOPS, 0.625)) == "62.5% of the FLOPs"
    assert Goal(FLOPS, 0.5).priced
    assert not Goal(KL, 0.5).priced


@pytest.mark.parametrize(
    ("text", "target"),
    [
        ("cpu", Target("cpu", 8)),
        ("cpu:batch=1", Target("cpu", 1)),
        ("gpu:1:batch=64", Target("gpu:1", 64)),
        ("gpu:fp16:batch=1", Target("gpu", 1, "fp16", 8)),
        ("gpu:1:fp16", Target("gpu:1", 8, "fp16", 8)),
        ("cpu:int8:batch=4", Target("cpu", 4, "int8")),
        ("openvino", Target(runtime="openvino")),
        ("openvino:bf16:batch=4", Target("cpu", 4, "bf16", runtime="openvino")),
        ("openvino:int8:batch=4", Target("cpu", 4, "int8", runtime="openvino")),
    ],
)
def test_targets_are_read(text, target):
    assert parse_target(text) == target
    assert parse_target(str(target)) == Target(**target.to_json()) == target


def test_a_target_says_widths_that_are_not_its_usual_ones():
    assert str(Target("cpu", 8, align=4)) == "cpu:batch=8 (widths in multiples of 4)"
    assert Target(**Target("cpu", 8, align=4).to_json()) == Target("cpu", 8, align=4)
    with pytest.raises(UserError, match="`align` is 0: give 1 or more"):
        Target(align=0)


@pytest.mark.parametrize(
    "text", ["", "cpu:batch=0", "cpu batch=8", "cpu:batch=-1", "cpu:int4", "gpu:fp8:batch=1", "cpu:bf8", "cpu:b16"]
)
def test_other_targets_are_refused(text):
    with pytest.raises(UserError, match="is not a target: give a device and a batch size"):
        parse_target(text)


def test_a_goal_loads_neither_onnx_nor_an_exporter():
    code = (
        "import sys, vitfx.pruning.goal; "
        "print(*(name for name in ('onnx', 'onnxruntime', 'onnxscript', 'torch.onnx') if name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"

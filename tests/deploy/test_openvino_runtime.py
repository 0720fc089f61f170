"""OpenVINO runs our ONNX files in float32, bfloat16 and int8, or says in one sentence why not."""

from __future__ import annotations

import builtins
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor

from tests.support.checks import traced
from tests.support.families import images
from vitfx.deploy.deployment import NAMES, Deployment, deploy
from vitfx.deploy.onnx_forms import FORMS
from vitfx.deploy.openvino_runtime import has_bfloat16, is_installed, open_openvino
from vitfx.deploy.quantize import to_bfloat16, to_int8
from vitfx.deploy.runtime import open_session
from vitfx.support.errors import UserError

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[2]
needs_openvino = pytest.mark.skipif(not is_installed(), reason="needs OpenVINO: pip install 'vitfx[openvino]'")

needs_bfloat16 = pytest.mark.skipif(
    not is_installed() or not has_bfloat16(), reason="needs OpenVINO and a CPU with bfloat16"
)


def exported(family: str, form: str = "standard") -> onnx.ModelProto:
    return deploy(traced(family).graph_module, Deployment(NAMES, FORMS[form]), images(4), {}).model


def of_onnx_runtime(model: onnx.ModelProto, pixels: Tensor) -> Tensor:
    return open_session(model.SerializeToString(), CPU).run(pixels)


@needs_openvino
@pytest.mark.parametrize("family", ["torchvision", "timm-layerscale-average-registers", "timm-eva02", "hf-dinov3"])
def test_it_answers_as_onnx_runtime_does(family: str) -> None:
    """In float32 where the CPU has bfloat16 too, at two batch sizes and one that is fixed."""
    model, pixels = exported(family), images(5)
    opened, expected = open_openvino(model.SerializeToString(), threads=1), of_onnx_runtime(model, pixels)
    for count in (5, 1):
        torch.testing.assert_close(opened.run(pixels[:count]), expected[:count], rtol=1e-4, atol=1e-4)
    bound = opened.bind(pixels)
    bound()
    torch.testing.assert_close(bound.logits, expected, rtol=1e-4, atol=1e-4)
    assert opened.provider.startswith("OpenVINO 20")


@needs_openvino
def test_an_int8_file_is_the_same_there(tmp_path: Path) -> None:
    """Products in integers, so that only roundings in between differ: far less than int8 itself costs."""
    model, pixels = exported("torchvision"), images(8)
    small = to_int8(model, pixels).model
    onnx.save(small, tmp_path / "int8.onnx")
    expected, exact = of_onnx_runtime(small, pixels), of_onnx_runtime(model, pixels)
    error = (open_openvino(tmp_path / "int8.onnx").run(pixels) - expected).norm()
    assert error < 0.5 * (expected - exact).norm()


@needs_bfloat16
def test_a_file_in_bf16_is_computed_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which float32 arithmetic on the same rounded weights is nearer to the original than."""
    model, pixels = exported("torchvision"), images(8)
    narrow, exact = to_bfloat16(model), of_onnx_runtime(model, pixels)
    by_openvino = open_openvino(narrow.SerializeToString()).run(pixels)
    assert 0 < float((by_openvino - exact).norm() / exact.norm()) < 0.05
    monkeypatch.setattr("vitfx.deploy.openvino_runtime.has_bfloat16", lambda: False)
    in_float32 = open_openvino(narrow.SerializeToString()).run(pixels)
    torch.testing.assert_close(in_float32, of_onnx_runtime(narrow, pixels), rtol=1e-4, atol=1e-4)
    assert float((by_openvino - in_float32).norm()) > 1e-4 * float(exact.norm())


@needs_openvino
def test_what_it_cannot_run(tmp_path: Path) -> None:
    """It opens ONNX Runtime's own packed attention, and answers something else."""
    with pytest.raises(UserError, match=r"operators of com\.microsoft, which OpenVINO can't run: export it with"):
        open_openvino(exported("torchvision", "packed").SerializeToString())
    (tmp_path / "text.onnx").write_text("no model")
    for path in (tmp_path / "text.onnx", tmp_path / "missing.onnx"):
        with pytest.raises(UserError, match=r"^OpenVINO cannot open .*\.onnx: [^\n]+$"):
            open_openvino(path)
    opened = open_openvino(exported("torchvision").SerializeToString())
    for run in (opened.run, opened.bind):
        with pytest.raises(UserError, match=r"takes \[\?,3,32,32\] and refused \[2, 3, 32, 30\] \(OpenVINO: [^\n]+\)$"):
            run(images(2)[..., :30])


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name == "openvino":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError) as caught:
        open_openvino(b"")
    assert str(caught.value) == "OpenVINO is not installed here: pip install 'vitfx[openvino]'"


@needs_openvino
def test_ctrl_c_is_heard_when_models_have_ended_in_the_order_in_which_they_began(tmp_path: Path) -> None:
    """OpenVINO's own cores then leave the process without a stack for signals: it died of the next one."""
    onnx.save(exported("torchvision"), tmp_path / "model.onnx")
    code = (
        "import gc, signal\n"
        "from pathlib import Path\n"
        "import numpy as np\n"
        "from vitfx.deploy.openvino_runtime import open_openvino\n"
        f"pixels = np.zeros({tuple(images(1).shape)}, np.float32)\n"
        "models = [open_openvino(Path('model.onnx')) for _ in range(2)]\n"
        "for model in models:\n"
        "    model.run(pixels)\n"
        "del model\n"
        "while models:\n"
        "    del models[0]\n"
        "    gc.collect()\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "try:\n"
        "    signal.raise_signal(signal.SIGINT)\n"
        "except KeyboardInterrupt:\n"
        "    print('heard')\n"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "heard\n"), done.stderr

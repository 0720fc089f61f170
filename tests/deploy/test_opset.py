"""--opset: older operators in every ONNX file, equal logits, and what that costs said."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import torch

from tests.cli.test_image_size import images
from tests.models.test_image_size import ARCH, saved, vit
from vitfx import optimize, prune, recover
from vitfx.deploy.deployment import NAMES, default_deployment, deploy
from vitfx.deploy.export import OLDEST_OPSET, OPSET, export_checked
from vitfx.graph.trace import to_canonical


def opsets(path: Path) -> dict[str, int]:
    return {given.domain: given.version for given in onnx.load(path).opset_import}


SLOWLY = [pytest.param(opset, marks=pytest.mark.slow) for opset in range(OLDEST_OPSET + 1, OPSET) if opset != 20]


@pytest.mark.parametrize("opset", [OLDEST_OPSET, 20, OPSET, *SLOWLY])
@pytest.mark.parametrize("portable", [True, False])
def test_each_opset_gives_the_same_logits(tmp_path: Path, opset: int, portable: bool) -> None:
    pixels = torch.randn(3, 3, 32, 32)
    module = to_canonical(vit(depth=2), pixels).graph_module
    deployment = default_deployment(NAMES, torch.device("cpu"), portable=portable, opset=opset)
    deployed = deploy(module, deployment, pixels, {})
    export_checked(deployed.model, tmp_path / "model.onnx", module, pixels)
    assert opsets(tmp_path / "model.onnx") == {"": opset}
    written_out = not any(node.op_type == "Attention" for node in deployed.model.graph.node)
    assert written_out == (opset < OPSET) == (deployment.remark is not None) == ("opset" in deployment.to_json())


def test_prune_writes_both_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, data = saved(tmp_path, vit(img_size=32, depth=2)), images(tmp_path / "images", 32, 32)
    given = [path, "--arch", f"{ARCH},depth=2", "--data", data, "--samples", "8", "--tau", "1e-9"]
    assert prune.main([*given, "--compensate", "mean", "--opset", "18", "--out", str(tmp_path / "out")]) == 0
    assert "opset 18 has no Attention operator" in " ".join("".join(capsys.readouterr()).split())
    assert all(opsets(tmp_path / "out" / name) == {"": 18} for name in ("pruned.onnx", "baseline.onnx"))


@pytest.mark.parametrize("opset", ["17", "24", "x"])
@pytest.mark.parametrize("door", [prune, optimize, recover])
def test_others_are_refused(door: object, opset: str) -> None:
    parser = door.build_parser()  # type: ignore[attr-defined]
    with pytest.raises(SystemExit):
        parser.parse_args(["demo", "--opset", opset])


def test_a_form_that_needs_a_newer_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert optimize.main(["demo", "--form", "standard", "--opset", "20", "--out", str(tmp_path / "out")]) == 2
    said = " ".join(" ".join(capsys.readouterr()).split())
    assert "--form standard needs opset 23: leave out --opset 20, or give --form exported" in said

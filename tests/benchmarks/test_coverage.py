"""benchmarks.coverage: what it says of models that are taken whole, in part, and not."""

import json

import pytest

from benchmarks.coverage import FULL, REFUSED, look_at, main
from benchmarks.coverage_models import model_names


@pytest.mark.parametrize(
    ("name", "kind", "state", "reason"),
    [
        ("eva02_tiny_patch14_224", "Eva", FULL, ""),
        ("vit_base_patch16_siglip_224", "VisionTransformer", FULL, ""),
        ("vit_base_patch16_sapiens2", "Eva", FULL, ""),
        ("vit_base_patch16_xp_224", "VisionTransformer", FULL, ""),
        ("vit_base_patch16_rpn_224", "VisionTransformer", REFUSED, "no attention sublayer"),
    ],
)
def test_states(name, kind, state, reason):
    row = look_at(name, kind)
    assert row.state == state and row.kind == kind
    assert reason in row.reason
    assert (row.error is None) == (state == REFUSED)
    if row.error is not None:
        assert row.error < 1e-5


def test_the_command_writes_a_record_and_a_page(tmp_path, capsys):
    out, page = tmp_path / "coverage.json", tmp_path / "coverage.md"
    assert list(model_names("vit_tiny_patch16_224")) == [("vit_tiny_patch16_224", "VisionTransformer")]
    arguments = ["--names", "vit_tiny_patch16_224", "--out", str(out), "--markdown", str(page)]
    assert main(arguments) == 0
    record = json.loads(out.read_text())
    assert record["format"] == "vitfx-coverage/2"
    assert [model["state"] for model in record["models"]] == [FULL]
    assert "| all | 1 | 1 | 1 | 1 | 1 | 1 | 1 | 1 | 1 | 1 |" in page.read_text()
    assert main(arguments) == 2
    assert "already exists" in capsys.readouterr().err
    assert main(["--names", "resnet18", "--out", str(tmp_path / "none.json")]) == 2
    assert "matches no ViT-like model" in capsys.readouterr().err

"""An artifact is its graph and its weights: it loads without the original's code, and prunes again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.fx import GraphModule

from passes.base import run_passes
from passes.merge_tokens import MergeBySchedule, schedule_of
from passes.plan import DeletionPlan
from passes.token_schedule import TokenSchedule
from tests.support.checks import plan_of, traced
from tests.support.families import SIZE, images
from vitfx.graph.trace import to_canonical
from vitfx.graph.verify import rewrite
from vitfx.images.preprocess import Preprocess
from vitfx.models.checkpoint import load_model, save_artifact

PREPROCESS = Preprocess((SIZE, SIZE), mean=(0.1, 0.2, 0.3))
CLASSES = tuple("abcdefg")
UNITS = {"a0": [0, 2], "m0": [1, 5, 6], "a1": [0, 1, 2, 3], "m2": list(range(48))}


def pruned(family: str, constants: str) -> GraphModule:
    graph_module = traced(family).graph_module
    return rewrite(graph_module, plan_of(graph_module, UNITS, constants)).graph_module.eval()


def save(path: Path, graph_module: GraphModule) -> Path:
    save_artifact(path, graph_module, PREPROCESS, CLASSES, "digits", {"vitfx": "0", "settings": {"tau": 0.1}})
    return path


@pytest.mark.parametrize("family", ["vitfx", "torchvision", "hf-vit"])
@pytest.mark.parametrize("constants", ["none", "mean", "position"])
def test_it_loads_to_the_bit(tmp_path: Path, family: str, constants: str) -> None:
    artifact = pruned(family, constants)
    loaded = load_model(str(save(tmp_path / "pruned.pt", artifact)))
    with torch.no_grad():
        assert torch.equal(loaded.module(images(3)), artifact(images(3)))
    assert (loaded.preprocess, loaded.classes, loaded.data) == (PREPROCESS, CLASSES, "digits")
    dimensions = {value.dim() for name, value in loaded.module.named_parameters() if name.endswith("out.bias")}
    assert dimensions == ({1, 2} if constants == "position" else {1})


@pytest.mark.parametrize("family", ["vitfx", "hand-written"])
def test_merged_tokens_load_to_the_bit(tmp_path: Path, family: str) -> None:
    schedule = TokenSchedule(((0, 3), (2, 1)))
    artifact = run_passes(traced(family).graph_module, [MergeBySchedule(schedule, images(2))]).graph_module.eval()
    loaded = load_model(str(save(tmp_path / "pruned.pt", artifact))).module
    assert isinstance(loaded, GraphModule)
    assert schedule_of(loaded) == schedule
    with torch.no_grad():
        assert torch.equal(loaded(images(3)), artifact(images(3)))
        assert torch.equal(to_canonical(loaded, images(2)).graph_module(images(3)), artifact(images(3)))


def test_the_file_is_data_alone(tmp_path: Path) -> None:
    path = save(tmp_path / "pruned.pt", pruned("vitfx", "mean"))
    record = torch.load(path, weights_only=True)
    assert record["provenance"] == {"vitfx": "0", "settings": {"tau": 0.1}}
    assert isinstance(record["graph"], str)
    assert [one.name for one in tmp_path.iterdir()] == ["pruned.pt"]


def test_the_same_artifact_is_the_same_bytes(tmp_path: Path) -> None:
    artifact = pruned("vitfx", "mean")
    assert save(tmp_path / "a.pt", artifact).read_bytes() == save(tmp_path / "b.pt", artifact).read_bytes()


def test_it_needs_neither_the_original_nor_its_library(tmp_path: Path) -> None:
    path = save(tmp_path / "pruned.pt", pruned("hf-vit", "position"))
    code = (
        "import sys, torch\n"
        "from vitfx.models.checkpoint import load_model\n"
        "torch.save(load_model(sys.argv[1]).module(torch.ones(2, 3, 32, 32)).detach(), sys.argv[2])\n"
        "assert not {'transformers', 'timm', 'vitfx.models.vit'} & sys.modules.keys(), sorted(sys.modules)\n"
    )
    command = [sys.executable, "-c", code, str(path), str(tmp_path / "logits.pt")]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    with torch.no_grad():
        expected = load_model(str(path)).module(torch.ones(2, 3, 32, 32))
    assert torch.allclose(torch.load(tmp_path / "logits.pt"), expected, rtol=1e-5, atol=1e-6)


def test_it_trains_and_prunes_again(tmp_path: Path) -> None:
    artifact = pruned("torchvision", "position")
    loaded = load_model(str(save(tmp_path / "pruned.pt", artifact))).module
    loaded.train()
    loaded(images(2)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in loaded.parameters())
    canonical = to_canonical(loaded.eval(), images(2))
    assert canonical.notes == ()
    again = rewrite(canonical.graph_module, plan_of(canonical.graph_module, {"a0": [1], "m1": [0, 7]}, "position"))
    second = load_model(str(save(tmp_path / "again.pt", again.graph_module.eval()))).module
    with torch.no_grad():
        assert torch.equal(second(images(3)), again.graph_module(images(3)))
    assert sum(map(torch.numel, second.parameters())) < sum(map(torch.numel, artifact.parameters()))


def test_an_empty_plan_is_the_model_itself(tmp_path: Path) -> None:
    graph_module = traced("vitfx").graph_module
    whole = rewrite(graph_module, DeletionPlan()).graph_module.eval()
    loaded = load_model(str(save(tmp_path / "whole.pt", whole))).module
    with torch.no_grad():
        assert torch.equal(loaded(images(3)), graph_module(images(3)))

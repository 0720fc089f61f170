"""pruned.pt2 is for torch alone: loaded without vitfx, at any batch, it answers as the artifact does."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.support.checks import traced
from tests.support.families import images
from vitfx.deploy.deployment import NAMES, default_deployment
from vitfx.deploy.export import ExportMismatch, onnx_metadata
from vitfx.deploy.lowering import lower
from vitfx.deploy.program_file import write_program
from vitfx.images.preprocess import Preprocess
from vitfx.models.checkpoint import load_model

CPU = torch.device("cpu")
FAMILIES = ("torchvision", "timm-layerscale-average-registers", "timm-eva02", "timm-map")
ALONE = """
import sys
from pathlib import Path

folder, packages = Path(sys.argv[1]), sys.argv[2]
sys.path.append(packages)
# They may lie among the packages.
sys.modules["vitfx"] = sys.modules["passes"] = None
import torch

batch = torch.load(folder / "pixels.pt")
for path in sorted(folder.glob("*.pt2")):
    told = {"role": ""}
    module = torch.export.load(path, extra_files=told).module()
    assert told["role"] == "pruned", told
    torch.save([module(batch), module(batch[:1])], path.with_suffix(".answers"))
loaded = {name.partition(".")[0] for name, module in sys.modules.items() if module is not None}
assert not loaded & {"vitfx", "passes", "onnx", "timm", "transformers"}, loaded
"""


def test_torch_alone_runs_it(tmp_path: Path) -> None:
    """In a process that can't import vitfx, on a batch that it was not exported at and on one image."""
    expected = {}
    for name in FAMILIES:
        graph = lower(
            traced(name).graph_module, default_deployment(NAMES, CPU, portable=True).graph_rewrites, images(4)
        )
        assert write_program(tmp_path / f"{name}.pt2", graph.graph_module, images(4), {"role": "pruned"}) < 1e-5
        expected[name] = graph.graph_module(images(5))
    torch.save(images(5), tmp_path / "pixels.pt")
    command = [sys.executable, "-I", "-S", "-W", "ignore", "-c", ALONE]
    packages = str(Path(torch.__file__).parents[1])
    process = subprocess.run([*command, str(tmp_path), packages], cwd=tmp_path, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    for name, answers in expected.items():
        batch, first = torch.load(tmp_path / f"{name}.answers")
        torch.testing.assert_close(batch, answers, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(first, answers[:1], rtol=1e-4, atol=1e-5)


class Sliced(nn.Module):
    """Its weight is a small view of a large table."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(100_000, 4)[:5])

    def forward(self, pixels: Tensor) -> Tensor:
        return nn.functional.linear(pixels.mean((2, 3)), self.weight[:, :3])


def test_it_holds_weights_and_nothing_of_the_user(tmp_path: Path) -> None:
    """Neither the images that it was traced on, nor where the code lies, nor what views leave out."""
    write_program(tmp_path / "small.pt2", Sliced(), images(4), {})
    with zipfile.ZipFile(tmp_path / "small.pt2") as archive:
        members = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    assert sum(map(len, members.values())) < 50_000
    assert not any(b"stack_trace" in contents or b".py" in contents for contents in members.values())
    (weight,) = (contents for name, contents in members.items() if name.endswith("weight_0"))
    assert len(weight) == 5 * 4 * 4


def test_vitfx_reads_its_own_preprocessing_back(tmp_path: Path) -> None:
    preprocess = Preprocess((32, 32), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    graph = traced("torchvision").graph_module
    told = onnx_metadata(replace(load_model("demo"), preprocess=preprocess, classes=tuple("abcdefg")), {})
    write_program(tmp_path / "m.pt2", graph, images(2), told)
    loaded = load_model(str(tmp_path / "m.pt2"))
    assert (loaded.preprocess.mean, loaded.preprocess.std) == (preprocess.mean, preprocess.std)
    assert loaded.classes == tuple("abcdefg")
    torch.testing.assert_close(loaded.module(images(3)), graph(images(3)), rtol=1e-5, atol=1e-5)


class Forgetful(nn.Module):
    """Answers differently each time that it is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, pixels: Tensor) -> Tensor:
        self.calls += 1
        return pixels.mean((2, 3)) + self.calls


@pytest.mark.parametrize("reference", [nn.Flatten(), Forgetful()], ids=["another shape", "other answers"])
def test_a_file_that_differs_is_removed(reference: nn.Module, tmp_path: Path) -> None:
    class Mean(nn.Module):
        def forward(self, pixels: Tensor) -> Tensor:
            return pixels.mean((2, 3))

    with pytest.raises(ExportMismatch, match=r"m\.pt2 (gives logits|differs from torch)"):
        write_program(tmp_path / "m.pt2", Mean(), images(2), {}, reference)
    assert not list(tmp_path.iterdir())

"""Exported programs are looked through before torch.export.load may run what they hold."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.export import Dim, export

from vitfx.models.checkpoint import load_model
from vitfx.support.errors import UserError

GRAPH = "models/model.json"
WEIGHTS = "data/weights/model_weights_config.json"
CONSTANTS = "data/constants/model_constants_config.json"
BATCH = ({0: Dim("batch", min=1, max=64)},)


class Small(nn.Module):
    """A classifier with a constant, a buffer, dropout and arithmetic on the batch's size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 4, 4)
        self.head = nn.Linear(16, 5)
        self.drop = nn.Dropout(0.5)
        self.register_buffer("scale", torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        flat = self.conv(x).view(x.shape[0], -1)
        flat = flat.view(x.shape[0] * 4, 4).view(-1, 16)
        return self.head(self.drop(nn.functional.gelu(flat, approximate="tanh"))) * self.scale + torch.tensor([1.0] * 5)


def save(path: Path, model: nn.Module, example: torch.Tensor, dynamic: Any = BATCH) -> Path:
    torch.export.save(export(model, (example,), dynamic_shapes=dynamic, strict=False), path)
    return path


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Small]:
    torch.manual_seed(0)
    model = Small().eval()
    return save(tmp_path_factory.mktemp("program") / "small.pt2", model, torch.randn(2, 3, 8, 8)), model


def rewritten(source: Path, target: Path, part: str, change: Callable[[Any], Any]) -> Path:
    """A copy of the archive with one JSON part changed."""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as out:
        for member in archive.namelist():
            contents = archive.read(member)
            if member.endswith(part):
                contents = json.dumps(change(json.loads(contents))).encode()
            out.writestr(member, contents)
    return target


def with_member(source: Path, target: Path, part: str, contents: bytes) -> Path:
    """A copy of the archive with another part in it, or another one in its place."""
    with zipfile.ZipFile(source) as archive, zipfile.ZipFile(target, "w") as out:
        for member in archive.namelist():
            if not member.endswith(part):
                out.writestr(member, archive.read(member))
        out.writestr(f"{archive.namelist()[0].partition('/')[0]}/{part}", contents)
    return target


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        load_model(str(path), **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_is_harmless_loads_to_the_same_model(program: tuple[Path, Small]) -> None:
    path, model = program
    loaded = load_model(str(path))
    for count in (1, 3):
        images = torch.randn(count, 3, 8, 8)
        torch.testing.assert_close(loaded.module(images), model(images))


def test_an_unchanged_copy_loads(program: tuple[Path, Small], tmp_path: Path) -> None:
    """So that the changed copies below are refused for their changes."""
    for part in (GRAPH, WEIGHTS, CONSTANTS):
        load_model(str(rewritten(program[0], tmp_path / "copy.pt2", part, lambda record: record)))


class MakesFolder:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.mkdir, (self.folder,)


def test_pickled_sample_inputs_are_left_out(program: tuple[Path, Small], tmp_path: Path) -> None:
    torch.save((MakesFolder(tmp_path / "marker"),), tmp_path / "inputs.pt")
    inputs = (tmp_path / "inputs.pt").read_bytes()
    path = with_member(program[0], tmp_path / "evil.pt2", "data/sample_inputs/model.pt", inputs)
    load_model(str(path))
    assert not (tmp_path / "marker").exists()


def rename(record: Any, old: str, new: str) -> Any:
    """Every string `old` in a JSON value becomes `new`, keys too."""
    if isinstance(record, dict):
        return {rename(key, old, new): rename(value, old, new) for key, value in record.items()}
    if isinstance(record, list):
        return [rename(value, old, new) for value in record]
    return new if record == old else record


SYMBOL = "Symbol('{}', positive=True, integer=True)"
CALL = '__import__("os").mkdir("marker")'


def change_expressions(record: Any, new: str) -> Any:
    if isinstance(record, dict):
        return {key: new if key == "expr_str" else change_expressions(value, new) for key, value in record.items()}
    if isinstance(record, list):
        return [change_expressions(value, new) for value in record]
    return record


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            lambda graph: rename(graph, "torch.ops.aten.conv2d.default", "torch.serialization.os.mkdir"),
            "the target 'torch.ser",
        ),
        (lambda graph: rename(graph, "torch.ops.aten.conv2d.default", "torch.hub.load"), "the target 'torch.hub.load'"),
        (lambda graph: rename(graph, "torch.ops.aten.conv2d.default", "torch.ops.aten.from_file.default"), "from_file"),
        (lambda graph: rename(graph, "torch.ops.aten.conv2d.default", "torch.ops.aten.__class__.mro"), "__class__"),
        (lambda graph: rename(graph, "torch.ops.aten.conv2d.default", "torch.ops.aten.conv2d.__init__"), "__init__"),
        (lambda graph: rename(graph, "torch.ops.aten.conv2d.default", "_operator.methodcaller"), "methodcaller"),
        (lambda graph: rename(graph, "torch.ops.aten.conv2d.default", "#mine:operator"), "the target '#mine:operator'"),
        (lambda graph: rename(graph, "x", f"x={CALL}"), "__import__"),
        (lambda graph: rename(graph, "conv2d", f"y\n{CALL}"), "__import__"),
        (lambda graph: rename(graph, "conv.weight", f'w", {CALL}, "'), "__import__"),
        (lambda graph: change_expressions(graph, CALL), "the expr_str"),
        (lambda graph: change_expressions(graph, "exec(chr(49))"), "the expr_str 'exec(chr(49))'"),
        (lambda graph: change_expressions(graph, "Symbol.mro"), "the expr_str 'Symbol.mro'"),
    ],
)
def test_graphs_that_could_run_code_are_refused(
    program: tuple[Path, Small],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    change: Callable[[Any], Any],
    reason: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    said = refused(rewritten(program[0], tmp_path / "evil.pt2", GRAPH, change))
    assert reason in said
    assert "which torch.export.load could run as code" in said
    assert [path.name for path in tmp_path.iterdir()] == ["evil.pt2"]


def test_trees_of_other_classes_are_refused(program: tuple[Path, Small], tmp_path: Path) -> None:
    def change(record: Any) -> Any:
        signature = record["graph_module"]["module_call_graph"][0]["signature"]
        signature["in_spec"] = signature["in_spec"].replace("builtins.tuple", "collections.defaultdict")
        return record

    assert "the in_spec" in refused(rewritten(program[0], tmp_path / "evil.pt2", GRAPH, change))


@pytest.mark.parametrize("part", [WEIGHTS, CONSTANTS])
def test_pickled_tensors_are_refused(program: tuple[Path, Small], tmp_path: Path, part: str) -> None:
    def change(record: Any) -> Any:
        next(iter(record["config"].values()))["use_pickle"] = True
        return record

    assert "the pickled object" in refused(rewritten(program[0], tmp_path / "evil.pt2", part, change))


def test_pickled_constants_are_refused(program: tuple[Path, Small], tmp_path: Path) -> None:
    def change(record: Any) -> Any:
        next(iter(record["config"].values()))["path_name"] = "opaque_obj_0"
        return record

    assert "the pickled object" in refused(rewritten(program[0], tmp_path / "evil.pt2", CONSTANTS, change))


@pytest.mark.parametrize("part", ["data/weights/model.pt", "data/aotinductor/model/a.so", "models/other.json", "../up"])
def test_other_parts_are_refused(program: tuple[Path, Small], tmp_path: Path, part: str) -> None:
    said = refused(with_member(program[0], tmp_path / "evil.pt2", part, b"{}"))
    assert f"holds the part {part!r}" in said


def test_what_is_trusted_is_loaded_as_torch_does(program: tuple[Path, Small], tmp_path: Path) -> None:
    path, model = program
    images = torch.randn(2, 3, 8, 8)
    odd = with_member(path, tmp_path / "odd.pt2", "notes/README", b"")
    assert "'notes/README'" in refused(odd)
    torch.testing.assert_close(load_model(str(odd), trust_pickle=True).module(images), model(images))


def test_a_truncated_program(program: tuple[Path, Small], tmp_path: Path) -> None:
    (tmp_path / "half.pt2").write_bytes(program[0].read_bytes()[:2000])
    assert "cut short" in refused(tmp_path / "half.pt2")


def test_a_program_of_another_schema(program: tuple[Path, Small], tmp_path: Path) -> None:
    def change(record: Any) -> Any:
        record["schema_version"]["major"] = 99
        return record

    assert f"torch {torch.__version__}" in refused(rewritten(program[0], tmp_path / "new.pt2", GRAPH, change))


def test_a_graph_that_is_no_json(program: tuple[Path, Small], tmp_path: Path) -> None:
    assert "is a broken torch.export program" in refused(with_member(program[0], tmp_path / "a.pt2", GRAPH, b"{"))


def test_a_fixed_batch(tmp_path: Path) -> None:
    path = save(tmp_path / "fixed.pt2", Small().eval(), torch.randn(2, 3, 8, 8), dynamic=None)
    assert f"the batch of {path} is fixed at 2" in refused(path)


def test_training_mode(tmp_path: Path) -> None:
    assert "was exported in training mode" in refused(save(tmp_path / "m.pt2", Small(), torch.randn(2, 3, 8, 8)))


def test_nan_weights(tmp_path: Path) -> None:
    model = Small().eval()
    nn.init.constant_(model.head.bias, float("nan"))
    assert "5 of the 5 weights in head.bias" in refused(save(tmp_path / "nan.pt2", model, torch.randn(2, 3, 8, 8)))


def test_images_of_other_channels_need_their_preprocessing(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()
    path = save(tmp_path / "grey.pt2", model, torch.randn(2, 1, 8, 8))
    assert "does not say what images it takes" in refused(path)
    assert "takes 1 inputs: give a program that takes images" in refused(
        save(tmp_path / "flat.pt2", nn.Linear(8, 3), torch.randn(2, 8))
    )

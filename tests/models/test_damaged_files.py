"""A value of a model file replaced by one of another type: the file loads all the same or is refused in a sentence."""

from __future__ import annotations

import copy
import json
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn
from torch.export import Dim, export

from tests.support.checks import traced
from tests.support.families import SIZE
from tests.support.records import model_record
from vitfx.images.preprocess import Preprocess
from vitfx.models.checkpoint import load_model, save_artifact, save_checkpoint
from vitfx.models.model_file import check_whole
from vitfx.models.vit import ViT
from vitfx.support.errors import UserError

VALUES: list[Any] = [
    None, True, False, 0, 7, -1, 2.5, float("nan"), 10**400, "", "x", "1", "[1, 2]", "5", [], [[]], [1], ["a", 2],
    {}, {"a": 1}, {"type": "Graph"},
]  # fmt: skip
IN_PICKLES = [*VALUES, (), {1: 2}, torch.zeros(2), torch.zeros(2, 2).to_sparse(), torch.zeros(1, dtype=torch.complex64)]
SIZES = {"image_size": 8, "patch_size": 4, "channels": 3, "classes": 3, "width": 8, "depth": 1, "heads": 2, "mlp": 8}
HF = {"image_size": 8, "patch_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8}
HF |= {"intermediate_size": 8, "id2label": {0: "cat", 1: "dog"}, "label2id": {"cat": 0, "dog": 1}}

Steps = tuple[Any, ...]


def nodes(value: Any, steps: Steps = ()) -> Iterator[Steps]:
    """The way to every value in a JSON-like one, itself first."""
    yield steps
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    for key, part in parts:
        yield from nodes(part, (*steps, key))


def replaced(value: Any, steps: Steps, new: Any) -> Any:
    if not steps:
        return new
    changed = list(value) if isinstance(value, list | tuple) else dict(value)
    changed[steps[0]] = replaced(value[steps[0]], steps[1:], new)
    return changed


def loads_or_is_refused(path: Path, **options: Any) -> None:
    try:
        load_model(str(path), **options)
    except UserError as error:
        assert "\n" not in str(error)
        assert len(str(error)) < 900


class File:
    """A whole model file, and how a copy is made of it with another record in it."""

    def __init__(self, record: Any, write: Callable[[Path, Any], Path], values: list[Any], **options: Any) -> None:
        self.record, self.write, self.values, self.options = record, write, values, options

    def check(self, folder: Path, steps: Steps, value: Any) -> None:
        loads_or_is_refused(self.write(folder, replaced(self.record, steps, copy.deepcopy(value))), **self.options)


def pickled(path: Path, change: Callable[[Any], Any] = lambda record: record) -> File:
    def write(folder: Path, record: Any) -> Path:
        torch.save(record, folder / "copy.pt")
        return folder / "copy.pt"

    return File(model_record(path), write, IN_PICKLES)


def checkpoint(folder: Path) -> File:
    weights, preprocess = ViT(**SIZES).state_dict(), Preprocess((8, 8))
    classes = ["a", "b", "c"]
    save_checkpoint(
        folder / "whole.pt", factory="vitfx.models:ViT", kwargs=SIZES, state_dict=weights, preprocess=preprocess,
        classes=classes, data="digits", made_by="a test",
    )  # fmt: skip
    return pickled(folder / "whole.pt")


def checkpoint_of_transformers(folder: Path) -> File:
    weights = transformers.ViTForImageClassification(transformers.ViTConfig(**HF)).state_dict()
    factory = "transformers:ViTForImageClassification"
    save_checkpoint(folder / "whole.pt", factory=factory, kwargs=HF, state_dict=weights, preprocess=Preprocess((8, 8)))
    return pickled(folder / "whole.pt")


def small_graph() -> torch.fx.GraphModule:
    return traced("vitfx").graph_module


def artifact(folder: Path) -> File:
    provenance = {"vitfx": "0", "settings": {"tau": 0.1, "only": [1, "b"]}}
    save_artifact(folder / "whole.pt", small_graph(), Preprocess((SIZE, SIZE)), None, "digits", provenance)
    return pickled(folder / "whole.pt")


def graph(folder: Path) -> File:
    save_artifact(folder / "whole.pt", small_graph(), Preprocess((SIZE, SIZE)), None, None, {})
    whole = model_record(folder / "whole.pt")

    def write(folder: Path, record: Any) -> Path:
        torch.save(whole | {"graph": json.dumps(record)}, folder / "copy.pt")
        return folder / "copy.pt"

    return File(json.loads(whole["graph"]), write, VALUES)


def folder_file(name: str) -> Callable[[Path], File]:
    def make(folder: Path) -> File:
        transformers.ViTForImageClassification(transformers.ViTConfig(**HF)).save_pretrained(folder / "hf")
        transformers.ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder / "hf")

        def write(folder: Path, record: Any) -> Path:
            (folder / "hf" / name).write_text(json.dumps(record))
            return folder / "hf"

        return File(json.loads((folder / "hf" / name).read_text()), write, VALUES)

    return make


def safetensors(folder: Path) -> File:
    save_file(ViT(**SIZES).state_dict(), folder / "whole.safetensors", metadata={"format": "pt"})
    whole = (folder / "whole.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])

    def write(folder: Path, record: Any) -> Path:
        header = json.dumps(record).encode()
        contents = struct.pack("<Q", len(header)) + header + whole[8 + length :]
        (folder / "copy.safetensors").write_bytes(contents)
        return folder / "copy.safetensors"

    return File(json.loads(whole[8 : 8 + length]), write, VALUES, arch="timm:vit_tiny_patch16_224")


class Exported(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(48, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(x.view(x.shape[0], -1)) + torch.tensor([1.0] * 3)


def member(part: str) -> Callable[[Path], File]:
    """Of an exported program."""

    def make(folder: Path) -> File:
        batch = ({0: Dim("batch", min=1, max=64)},)
        program = export(Exported().eval(), (torch.randn(2, 3, 4, 4),), dynamic_shapes=batch, strict=False)
        torch.export.save(program, folder / "whole.pt2")
        with zipfile.ZipFile(folder / "whole.pt2") as archive:
            parts = {name: archive.read(name) for name in archive.namelist()}
        (name,) = (name for name in parts if name.endswith(part))

        def write(folder: Path, record: Any) -> Path:
            with zipfile.ZipFile(folder / "copy.pt2", "w") as out:
                for other, contents in parts.items():
                    out.writestr(other, json.dumps(record) if other == name else contents)
            return folder / "copy.pt2"

        return File(json.loads(parts[name]), write, VALUES)

    return make


FILES: dict[str, Callable[[Path], File]] = {
    "checkpoint": checkpoint,
    "checkpoint of transformers": checkpoint_of_transformers,
    "artifact": artifact,
    "graph": graph,
    "config.json": folder_file("config.json"),
    "preprocessor_config.json": folder_file("preprocessor_config.json"),
    "safetensors header": safetensors,
    "program": member("models/model.json"),
    "program's weights": member("model_weights_config.json"),
    "program's constants": member("model_constants_config.json"),
}


@pytest.fixture(scope="module", params=FILES)
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[File, Path]:
    folder = tmp_path_factory.mktemp("damaged")
    return FILES[request.param](folder), folder


def test_the_whole_file_loads(file: tuple[File, Path]) -> None:
    """So that the changed copies below are refused for their changes."""
    whole, folder = file
    path = whole.write(folder, whole.record)
    if path.suffix == ".safetensors":
        with pytest.raises(UserError, match="does not fit timm"):
            load_model(str(path), **whole.options)
    else:
        load_model(str(path), **whole.options)


@given(st.data())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_value_of_another_type(file: tuple[File, Path], data: st.DataObject) -> None:
    whole, folder = file
    steps = data.draw(st.sampled_from(list(nodes(whole.record))))
    whole.check(folder, steps, data.draw(st.sampled_from(whole.values)))


@pytest.mark.parametrize(
    ("name", "steps", "value"),
    [
        ("graph", ("nodes", 5, "args", "tuple", 1), []),
        ("program", ("graph_module", "signature"), 5),
        ("program's constants", ("config", "lifted_tensor_0", "tensor_meta", "strides"), []),
    ],
)
def test_no_traceback_is_printed(
    name: str, steps: Steps, value: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """torch prints some before it raises, or logs them."""
    whole = FILES[name](tmp_path)
    capfd.readouterr()
    with pytest.raises(UserError):
        load_model(str(whole.write(tmp_path, replaced(whole.record, steps, value))))
    assert "Traceback" not in capfd.readouterr().err


def test_a_pickle_that_holds_itself(tmp_path: Path) -> None:
    contents: dict[str, Any] = {}
    contents["model"] = contents
    torch.save(contents, tmp_path / "model.pt")
    loads_or_is_refused(tmp_path / "model.pt")
    torch.save(model_record(checkpoint_path(tmp_path)) | {"provenance": contents}, tmp_path / "model.pt")
    loads_or_is_refused(tmp_path / "model.pt")


def checkpoint_path(folder: Path) -> Path:
    checkpoint(folder)
    return folder / "whole.pt"


def test_an_archive_that_says_it_is_in_several_files(tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    torch.save({"a": torch.zeros(2)}, path)
    contents = bytearray(path.read_bytes())
    disks = contents.rindex(b"PK\x06\x07") + 16
    contents[disks : disks + 4] = (2).to_bytes(4, "little")
    path.write_bytes(contents)
    with pytest.raises(UserError, match=r"model.pt is damaged, for .*: copy or download it again"):
        check_whole(path)

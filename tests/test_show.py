"""`python -m vitfx.show`: any model as text, pictures of every graph, and one sentence for a mistake."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.support.circuits import made_up, of_edges, texts
from tests.support.families import make
from tests.support.prune_runs import DIGITS, GREY, artifact, checkpoint, model
from vitfx.circuits.circuit import GRANULARITIES, Circuit
from vitfx.deploy.export import export_onnx
from vitfx.models.checkpoint import load_model, save_artifact
from vitfx.show import main
from vitfx.support.json_files import write_json


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "circuit.json"
    path.write_text(made_up("head").to_json(), encoding="utf-8")
    return path


@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_every_graph_becomes_a_picture(tmp_path: Path, granularity: str) -> None:
    path = tmp_path / "circuit.json"
    circuit = made_up(granularity)
    path.write_text(circuit.to_json(), encoding="utf-8")
    assert main([str(path)]) == 0
    said = texts((tmp_path / "circuit.svg").read_text(encoding="utf-8"))
    assert {"attention heads", "MLP paths", "layer 0", "layer 1"} <= said
    if granularity in ("edge", "qkv"):
        assert {"logits", "embed", "a0", "m1", "alive", "dead"} <= said
    assert any(f"{granularity} graph" in one and "KL 0.25 nats" in one for one in said)
    assert any(one.startswith("× is dead") for one in said)
    assert main([str(path), "--out", str(tmp_path / "small.PNG")]) == 0
    with Image.open(tmp_path / "small.PNG") as image:
        assert image.format == "PNG"
        assert min(image.size) > 500
    assert sorted(one.name for one in tmp_path.iterdir()) == ["circuit.json", "circuit.svg", "small.PNG"]


def _program(path: Path) -> None:
    batch = torch.export.Dim("batch", min=1)
    torch.export.save(torch.export.export(model(), (torch.zeros(2, 1, 8, 8),), dynamic_shapes=({0: batch},)), path)


GREY_IMAGES = ["--image-size", "8", "--mean", "0.3", "--std", "0.4"]


KINDS: dict[str, tuple[Callable[[Path], object], list[str]]] = {
    "checkpoint.pt": (lambda path: checkpoint(path, data=None), []),
    "artifact.pt": (artifact, []),
    "program.pt2": (_program, GREY_IMAGES),
    "pickle.pt": (lambda path: torch.save(make("torchvision"), path), ["--trust-pickle", "--image-size", "32"]),
    "weights.safetensors": (
        lambda path: save_file(timm.create_model("vit_tiny_patch16_224").state_dict(), path),
        ["--arch", "timm:vit_tiny_patch16_224"],
    ),
    "hf-folder": (lambda path: make("hf-vit").model.save_pretrained(path), ["--image-size", "32"]),
}


@pytest.mark.parametrize("name", [*KINDS, "demo"])
def test_any_model_prints_its_graph(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write, options = KINDS.get(name, (lambda _: None, []))
    write(Path(name))
    assert main([name, *options]) == 0, capsys.readouterr().err
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith("images: resized to ")
    assert lines[0].split() == ["name", "computes", "shape", "parameters", "FLOPs"]
    assert [line.split()[0] for line in lines[1:6]] == ["pixels", "embed", "positions", "a0", "m0"]
    assert [line.split()[0] for line in lines[-3:]] == ["norm", "head", "total"]
    assert "LayerNorm → Attention(" in lines[4] and " neurons, gelu, bias of fc1 out)" in lines[5]
    assert [entry.name for entry in tmp_path.iterdir()] == ([] if name == "demo" else [name])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_file_of_half_precision_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], dtype: torch.dtype
) -> None:
    torch.save(make("torchvision").to(dtype), tmp_path / "half.pt")
    command = [str(tmp_path / "half.pt"), "--trust-pickle", "--image-size", "32"]
    assert f"the model has {dtype} weights, which round too coarsely for the proofs" in refused(capsys, command)


def test_unrecognised_sublayers_are_noted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    unusual = timm.models.VisionTransformer(
        img_size=32, patch_size=8, depth=2, num_heads=4, embed_dim=32, num_classes=7
    )
    unusual.blocks[1].ls1 = torch.nn.LayerNorm(32)
    torch.save(unusual.eval(), tmp_path / "model")
    assert main([str(tmp_path / "model"), "--trust-pickle", "--image-size", "32"]) == 0
    printed = capsys.readouterr().out
    assert "\na1_opaque " in printed and "\nnote: a1_opaque is not prunable: " in printed


def test_what_is_shown_is_told_by_the_contents(
    written: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(written.rename(tmp_path / "model.pt"))]) == 0
    assert (tmp_path / "model.pt.svg").exists()
    assert "--arch is for a model, and" in refused_silently(capsys, [str(tmp_path / "model.pt"), "--arch", "timm:x"])
    assert "--out is for a circuit, and demo is a model: leave it out" in refused(capsys, ["demo", "--out", "x.svg"])
    assert "nothing does not exist" in refused(capsys, ["nothing"])
    # The header of safetensors begins with its length, which may be a brace's byte.
    header = b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}'.ljust(ord("{"))
    (tmp_path / "brace.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    assert "name their model with --arch" in refused(capsys, [str(tmp_path / "brace.safetensors")])


def refused_silently(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    capsys.readouterr()
    return refused(capsys, arguments)


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str]) -> str:
    assert main(arguments) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1
    return said.err


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--out", "circuit.pdf"], "is neither .svg nor .png"),
        (["--out", "picture"], "is neither .svg nor .png"),
        (["--out", "none/circuit.svg"], "is in a folder that does not exist: make none first"),
        (["--out", "c" * 300 + ".svg"], "can't be written (File name too long)"),
        (["--edges", "-1"], "--edges -1 is negative"),
        (["--top", "-2"], "--top -2 is negative"),
    ],
)
def test_options_that_make_no_picture(
    capsys: pytest.CaptureFixture[str], written: Path, options: list[str], sentence: str
) -> None:
    assert sentence in refused(capsys, [str(written), *options])
    assert list(written.parent.iterdir()) == [written]


@pytest.mark.parametrize(
    ("contents", "sentence"),
    [
        (b"{}", "is not vitfx-circuit/2"),
        (b"\xff\xfe\x00", "is not text"),
        (Circuit((), 0.0).to_json().encode(), "has no edges"),
        (of_edges(("x0.h0", "stream", True, 1.0)).to_json().encode(), "names a sublayer 'x0'"),
    ],
)
def test_what_is_no_circuit(capsys: pytest.CaptureFixture[str], tmp_path: Path, contents: bytes, sentence: str) -> None:
    path = tmp_path / "circuit.json"
    path.write_bytes(contents)
    assert sentence in refused(capsys, [str(path)])
    assert list(tmp_path.iterdir()) == [path]


def test_a_missing_circuit(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert "can't be read (No such file or directory)" in refused(capsys, [str(tmp_path / "circuit.json")])


def test_a_name_keeps_its_threshold(written: Path) -> None:
    for name in ("c-tau0.001", "c-tau0.01.json"):
        circuit = written.rename(written.with_name(name))
        assert main([str(circuit)]) == 0
        written = circuit
    assert sorted(one.name for one in written.parent.glob("*.svg")) == ["c-tau0.001.svg", "c-tau0.01.svg"]


def test_a_picture_is_overwritten_only_when_told(capsys: pytest.CaptureFixture[str], written: Path) -> None:
    picture = written.with_suffix(".svg")
    picture.write_text("mine")
    assert "already exists: give another name with --out, or --force" in refused(capsys, [str(written)])
    assert picture.read_text() == "mine"
    assert main([str(written), "--force"]) == 0
    assert picture.read_bytes().startswith(b"<?xml")


def test_without_matplotlib_its_extra_is_named(
    capsys: pytest.CaptureFixture[str], written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "pip install 'vitfx[plot]'" in refused(capsys, [str(written), "--out", str(written.with_suffix(".png"))])
    assert list(written.parent.iterdir()) == [written]
    assert main([str(written)]) == 0, "the grid of a head graph needs none"
    capsys.readouterr()
    written.write_text(made_up("edge").to_json(), encoding="utf-8")
    assert "pip install 'vitfx[plot]'" in refused(capsys, [str(written), "--force"])


def test_an_onnx_file_says_what_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_onnx(model(), path := tmp_path / "a.onnx", torch.zeros(2, 1, 8, 8), {"vitfx": "0", "classes": "x" * 1000})
    assert main([str(path)]) == 0
    shown = capsys.readouterr().out
    assert "the file matches its digest" in shown and "operators of ONNX 23" in shown
    assert "vitfx: 0" in shown and f"classes: {'x' * 400} …" in shown and "Attention" in shown
    plain = onnx.load(path)
    del plain.metadata_props[:]
    onnx.save(plain, path)
    assert main([str(path)]) == 0
    assert "has no digest" in capsys.readouterr().out
    for damage, sentence in ((b"no model", "is not a whole ONNX file"), (None, "can't be read")):
        path.unlink() if damage is None else path.write_bytes(damage)
        assert main([str(path)]) == 2
        assert sentence in capsys.readouterr().err
    assert main([str(path), "--top", "3"]) == 2


def test_an_artifact_says_what_it_was_made_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = load_model(str(artifact(tmp_path / "a.pt"))).module
    save_artifact(tmp_path / "b.pt", graph, GREY, DIGITS, "digits", {"vitfx": "0.5", "tau": None})
    assert main([str(tmp_path / "b.pt")]) == 0
    assert 'made from: {"vitfx": "0.5"}' in capsys.readouterr().out


RECORD = {
    "kl": 0.25,
    "notes": ["first", "second"],
    "steps": [{"price": 1}, {"price": 2}],
    "long": "x" * 300,
    "nested": {"deeper": {"deepest": {"a": 1}}},
    "environment": {"vitfx": "0.6.0"},
    "settings": {"model": "vit.pt", "seed": 0},
}


def test_any_other_record_says_what_it_was_made_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "report.json"
    write_json(path, "vitfx-prune-report/1", RECORD)
    assert main([str(path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "vitfx-prune-report/1, exactly as it was written, by its digest",
        "settings:",
        "  model: vit.pt",
        "  seed: 0",
        "environment:",
        "  vitfx: 0.6.0",
        "kl: 0.25",
        "notes:",
        "  - first",
        "  - second",
        "steps: 2 entries",
        f"long: {'x' * 200}… (300 characters)",
        "nested:",
        "  deeper:",
        '    deepest: {"a": 1}',
    ]
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]
    assert "--out does not apply: " in refused(capsys, [str(path), "--out", "x.svg"])
    path.write_text(path.read_text().replace("0.25", "0.20"))
    assert "can't be trusted, for its contents do not match its digest" in refused(capsys, [str(path)])


def test_a_record_of_an_old_version_has_no_digest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "report.json"
    path.write_text('{"format": "vitfx-prune-report/1", "kl": 1}')
    assert main([str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[0] == "vitfx-prune-report/1, without a digest, as vitfx 0.5 wrote them"


@pytest.mark.parametrize(
    "path", sorted((Path(__file__).parents[1] / "docs").glob("*.json")), ids=lambda path: path.name
)
def test_records_of_the_docs_are_shown(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(path)]) == 0
    format = json.loads(path.read_text(encoding="utf-8"))["format"]
    assert capsys.readouterr().out.startswith(f"{format}, ")

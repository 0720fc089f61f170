"""Every loader with whole files of its kind, as small as they come."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from safetensors.torch import save_file

from passes.plan import DeletionPlan, Refit, SublayerDeletion
from tests.fuzz.harness import Loader
from tests.models.test_damaged_files import HF, Exported
from tests.support.image_files import RGB, picture
from tests.support.prune_runs import artifact, checkpoint
from vitfx.circuits.circuit import Circuit, Decision, Edge, Reader, Writer, read_circuit
from vitfx.deploy.export import export_onnx
from vitfx.deploy.onnx_file import read_onnx
from vitfx.deploy.program_file import write_program
from vitfx.discovery.basis.journal import FileJournal
from vitfx.images.classes import read_class_names
from vitfx.images.splits import open_data
from vitfx.models.checkpoint import load_model
from vitfx.pruning.latency_table import LatencyTable
from vitfx.pruning.plan_file import read_plan, write_plan
from vitfx.runs.task_circuits import read_tasks
from vitfx.support.errors import UserError
from vitfx.training.state import STATE, Epoch, Log, read_state, write_state

DECISIONS = tuple(
    Decision(Edge(Writer("m0", number, (number,)), Reader("a1", 0)), number % 2 == 0, number / 3, number / 7)
    for number in range(6)
)


def _model(name: str, **options: Any) -> Callable[[Path], object]:
    def read(folder: Path) -> object:
        model = load_model(str(folder / name), **options)
        return model.fingerprint, model.preprocess, model.classes, model.data, dict(model.provenance)

    return read


def _program(folder: Path) -> None:
    module = Exported().eval()
    write_program(folder / "model.pt2", module, torch.randn(2, 3, 4, 4), {})


def _safetensors(folder: Path) -> None:
    from tests.models.test_state_dicts import RAW

    save_file(RAW, folder / "model.safetensors", metadata={"format": "pt"})


def _hf_folder(folder: Path) -> None:
    transformers.ViTForImageClassification(transformers.ViTConfig(**HF)).save_pretrained(folder / "hf")
    transformers.ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(folder / "hf")


def _onnx(folder: Path) -> None:
    graph_module = load_model(str(artifact(folder / "pruned.pt"))).module
    (folder / "pruned.pt").unlink()
    export_onnx(graph_module, folder / "model.onnx", torch.zeros(2, 1, 8, 8), {"vitfx": "0"})


def _npz(folder: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 4, 3), dtype=np.uint8)
    np.savez_compressed(folder / "data.npz", images=pixels, labels=np.array(["a", "b"] * 3))


def _data(name: str, files: str = "") -> Callable[[Path], object]:
    """Labels, names and pixels of both parts; of images that were left out none."""

    def read(folder: Path) -> object:
        splits = open_data(str(folder / name), RGB, labels=folder / files if files else None)
        parts = [(part.names, part.labels, part.load()) for part in (splits.calibration, splits.evaluation)]
        return splits.classes, [(names, labels, loaded.pixels.tolist()) for names, labels, loaded in parts]

    return read


def _images(folder: Path) -> None:
    endings = ("png", "jpg", "bmp", "gif", "webp", "tiff", "ppm")
    for number, ending in enumerate(endings * 2):
        path = folder / "data" / ("train" if number < len(endings) else "val") / "ab"[number % 2] / f"{number}.{ending}"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number).save(path)


def _labelled(folder: Path) -> None:
    for number in range(6):
        path = folder / "data" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        picture(number).save(path)
    rows = [f"data/{number}.png,{'a|b' if number % 2 else 'c'}" for number in range(6)]
    (folder / "labels.csv").write_text("\n".join(["file,labels", *rows]))


def _tars(folder: Path) -> None:
    from tests.support.image_files import as_tars, tiny_imagenet

    as_tars(tiny_imagenet(folder.with_name("unpacked")), folder / "data")


def _circuit(folder: Path) -> None:
    circuit = Circuit(DECISIONS, 0.25, {"tau": 0.05}, {"vitfx": "0"})
    (folder / "circuit.json").write_text(circuit.to_json(), encoding="utf-8")


def _plan(folder: Path) -> None:
    constant = torch.arange(8.0, dtype=torch.float64)
    refit = Refit("m0", torch.arange(24.0).view(8, 3), torch.arange(8.0))
    write_plan(folder, DeletionPlan((SublayerDeletion("m0", "neuron", (0, 2), 5, constant),), (refit,)))


def _latencies(folder: Path) -> None:
    LatencyTable(3.0, 2.5, {"a0": ((1, 0.5), (2, 0.7)), "m0": ((8, 0.25), (16, 0.5))}).write(folder / "table.json")


def _journal(folder: Path) -> None:
    FileJournal(folder / "run.journal", "key").record(DECISIONS)


def _recalled(folder: Path) -> object:
    """A journal is believed up to the damage: what is recalled of it must be what was written, and in its order."""
    journal = FileJournal(folder / "run.journal", "key")
    recalled = [decision for each in DECISIONS for decision in journal.recall([each.edge]) or ()]
    return True if recalled == list(DECISIONS[: len(recalled)]) else recalled


def _state(folder: Path) -> None:
    log = Log([0.5, 0.25], [Epoch(1, 0.4, 0.5, 0.75, 1e-3, 100.0, {"head": [0.1, 0.2]})], 12.0)
    parts = {"model": {"head.weight": torch.arange(6.0).view(2, 3)}, "optimizer": {"step": 7}}
    write_state(folder / STATE, "key", log, parts)


def _read_state(folder: Path) -> object:
    known = read_state(folder / STATE, "key", force=False)
    if known is None:
        raise UserError("there is none")
    log, parts = known
    return log.to_json(), _plain(parts)


def _plain(value: Any) -> Any:
    """With lists in place of tensors, which can be compared."""
    if isinstance(value, torch.Tensor):
        return str(value.dtype), str(value.layout), tuple(value.shape), str(value) if value.numel() < 100 else ""
    return {name: _plain(part) for name, part in value.items()} if isinstance(value, dict) else value


def _tasks(folder: Path) -> None:
    (folder / "tasks.toml").write_text('[tasks]\ncats = ["tabby", "lynx"]\ndogs = [7, 9]\nrest = "all"\n')


def _class_names(folder: Path) -> None:
    (folder / "classes.txt").write_text("tabby\nlynx\nü\n")


LOADERS: dict[str, Loader] = {
    "artifact": Loader(lambda folder: artifact(folder / "model.pt"), _model("model.pt")),
    "checkpoint": Loader(lambda folder: checkpoint(folder / "model.pt"), _model("model.pt")),
    "program": Loader(_program, _model("model.pt2")),
    "safetensors": Loader(_safetensors, _model("model.safetensors", arch="timm:test_vit"), proven=False),
    "hf-folder": Loader(_hf_folder, _model("hf"), proven=False),
    "onnx": Loader(_onnx, lambda folder: read_onnx(folder / "model.onnx").SerializeToString(deterministic=True)),
    "npz": Loader(_npz, _data("data.npz")),
    "tar": Loader(_tars, _data("data"), proven=False, files="data/*.tar"),
    "images": Loader(_images, _data("data"), proven=False),
    "labels": Loader(_labelled, _data("data", "labels.csv"), proven=False, files="labels.csv"),
    "circuit": Loader(_circuit, lambda folder: read_circuit(folder / "circuit.json")),
    "plan": Loader(_plan, lambda folder: read_plan(folder).to_json()),
    "latencies": Loader(_latencies, lambda folder: LatencyTable.read(folder / "table.json")),
    "journal": Loader(_journal, _recalled),
    "training-state": Loader(_state, _read_state),
    "tasks": Loader(_tasks, lambda folder: read_tasks(folder / "tasks.toml"), proven=False),
    "class-names": Loader(_class_names, lambda folder: read_class_names(folder / "classes.txt"), proven=False),
}
"""By their names on the command line."""

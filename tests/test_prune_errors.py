"""What the prune command refuses: exit code 2, one sentence on stderr that says what to do, nothing written."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.ao.quantization import quantize_dynamic

from tests.support.prune_runs import GREY, SIZES, artifact, checkpoint, model, picture, run, run_circuit
from vitfx.images.splits import open_data
from vitfx.prune import main
from vitfx.runs.prune_files import RESULTS

PICKLED = ("--trust-pickle", "--image-size", "8", "--mean", "0.3", "--std", "0.4", "--data", "digits")


class Code:
    """Makes a marker folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


class FixedBatch(nn.Module):
    """Writes the batch as a number."""

    def __init__(self) -> None:
        super().__init__()
        self.vit = model()

    def forward(self, images: Tensor) -> Tensor:
        return self.vit(images).reshape(2, 10)


class Cnn(nn.Sequential):
    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))


class PostNorm(nn.Module):
    """A transformer that normalises behind its residual sums."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, 16, 4, 4)
        self.encoder = nn.TransformerEncoderLayer(16, 2, 16, batch_first=True, norm_first=False)
        self.head = nn.Linear(16, 10)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.encoder(self.patches(images).flatten(2).transpose(1, 2)).mean(1))


def pickled(path: Path, module: nn.Module) -> Path:
    torch.save(module.eval(), path)
    return path


def truncated(path: Path) -> Path:
    whole = checkpoint(path).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    return path


def with_weights(path: Path, **weights: Tensor) -> Path:
    return checkpoint(path, state_dict=model().state_dict() | weights)


def archive(path: Path, classes: int) -> Path:
    np.savez(path, images=np.zeros((40, 8, 8), np.uint8), labels=np.arange(40) % classes)
    return path


def folder(path: Path, images: int = 0) -> Path:
    path.mkdir()
    for index in range(images):
        picture(path / f"{index}.png", index)
    return path


Make = Callable[[Path], tuple[object, ...]]
MODELS: dict[str, tuple[Make, str]] = {
    "missing file": (lambda t: (t / "none.pt",), "none.pt does not exist: give the path of a model file, or demo"),
    "truncated checkpoint": (lambda t: (truncated(t / "m.pt"),), "m.pt is cut short or no model file"),
    "pickled module": (lambda t: (pickled(t / "m.pt", Cnn()),), "pass --trust-pickle if you trust where"),
    "weights of another model": (
        lambda t: (checkpoint(t / "m.pt", kwargs=SIZES | {"depth": 3}),),
        "missing (first: blocks.2.attention_norm.weight)",
    ),
    "weights of another shape": (
        lambda t: (checkpoint(t / "m.pt", kwargs=SIZES | {"mlp": 20}),),
        "of another shape (first: blocks.0.mlp.0.weight is (16, 16), not (20, 16))",
    ),
    "weights without a model": (
        lambda t: (pickled_weights(t / "m.pt"),),
        "holds only weights: name their model with --arch",
    ),
    "NaN weights": (
        lambda t: (with_weights(t / "m.pt", **{"head.bias": torch.full((10,), torch.nan)}),),
        "10 of the 10 weights in head.bias of ",
    ),
    "another image size": (
        lambda t: (checkpoint(t / "m.pt"), "--image-size", 12, "--mean", 0.3, "--std", 0.4),
        "does not take images of 1×12×12",
    ),
    "no image size": (
        lambda t: (pickled(t / "m.pt", Cnn()), "--trust-pickle"),
        "does not say what images it takes: give --image-size",
    ),
    "fixed batch": (
        lambda t: (pickled(t / "m.pt", FixedBatch()), *PICKLED),
        "forward() fixes or limits the batch size",
    ),
    "quantized": (
        lambda t: (pickled(t / "m.pt", quantize_dynamic(model(), {torch.nn.Linear}, dtype=torch.qint8)), *PICKLED),
        "the model is quantized (first: ",
    ),
    "CNN": (lambda t: (pickled(t / "m.pt", Cnn()), *PICKLED), "the model can't be pruned: "),
    "post-LN transformer": (
        lambda t: (pickled(t / "m.pt", PostNorm()), *PICKLED),
        "the model can't be pruned: ",
    ),
}
SETTINGS: dict[str, tuple[tuple[object, ...], str]] = {
    "NaN tau": (("--tau", "nan"), "--tau nan is not a threshold: give a finite number of nats, 0 or more"),
    "negative tau": (("--tau", "-0.1"), "--tau -0.1 is not a threshold"),
    "infinite tau": (("--tau", "inf"), "--tau inf is not a threshold"),
    "NaN limit": (("--max-kl", "nan"), "--max-kl nan is not a limit: give a number of nats, 0 or more"),
    "negative limit": (("--max-kl", "-1"), "--max-kl -1.0 is not a limit"),
    "no samples": (("--samples", 0), "--samples 0 is too small: give 2 or more"),
    "too many samples": (("--samples", 1439), "can't sample 1439 of 1438 images: ask for 1 to 1438"),
    "no paths": (("--paths", 0), "--paths 0 is too small: give 1 or more"),
    "negative seed": (("--seed", -1), "--seed -1 is too small: give 0 or more"),
    "negative evaluation": (("--eval-samples", -1), "--eval-samples -1 is negative: give a number of images, 0 for"),
    "one image to fit on": (("--compensate-samples", 1), "--compensate-samples 1 is too small: give 2 or more"),
    "no device": (("--device", "abacus"), "device 'abacus' is not one of"),
}
GOALS: dict[str, tuple[tuple[object, ...], str]] = {
    "negative healing": (
        ("--max-drop", 1, "--heal-minutes", -2),
        "--heal-minutes -2 is no length of time: give a number of minutes, 0 for none",
    ),
    "endless healing": (("--max-drop", 1, "--heal-minutes", "inf"), "--heal-minutes inf is no length of time"),
    "no memory": (("--max-drop", 1, "--memory", 0), "--memory 0 is not an amount of memory"),
    "memory without a goal": (("--tau", 0.1, "--memory", 2), "--memory 2.0 is for a goal: give one"),
    "healing without a goal": (("--tau", 0.1, "--heal-minutes", 2), "--heal-minutes 2.0 is for a goal: give one"),
    "healing of several": (
        ("--sweep", "1.2:1.5:2", "--heal-minutes", 2),
        "--heal-minutes 2.0 is for one model: leave out --sweep",
    ),
    "tokens of several": (
        ("--target-speedup", 1.5, "--rounds", 2, "--recover-minutes", 1, "--tokens", "r=2"),
        "--tokens r=2 is for one model: leave out --rounds",
    ),
}
DATA: dict[str, tuple[Make, str]] = {
    "no folder": (lambda t: (t / "none",), "none"),
    "empty folder": (lambda t: (folder(t / "empty"),), "empty"),
    "one image": (lambda t: (folder(t / "one", images=1),), "one"),
    "classes without a logit": (
        lambda t: (archive(t / "images.npz", classes=12),),
        "has 12 classes and the model 10 logits, which have no names",
    ),
}


def pickled_weights(path: Path) -> Path:
    torch.save(model().state_dict(), path)
    return path


def refused(
    capsys: pytest.CaptureFixture[str], out: Path, *arguments: object, command: Callable[..., int] = run
) -> str:
    """The sentence, without `error: `, of a run that must end with exit code 2 and write nothing."""
    before = sorted(out.parent.rglob("*"))
    first, *options = map(str, arguments)
    assert command(first, out, *options) == 2
    said = capsys.readouterr()
    assert "Traceback" not in said.out + said.err
    assert said.err.startswith("error: ")
    assert said.err.count("\n") == 1
    assert sorted(out.parent.rglob("*")) == before
    return said.err.removeprefix("error: ").rstrip("\n")


@pytest.mark.parametrize("case", MODELS)
def test_models(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, sentence = MODELS[case]
    assert sentence in refused(capsys, tmp_path / "out", *make(tmp_path))


@pytest.mark.parametrize("case", SETTINGS)
def test_settings(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options, sentence = SETTINGS[case]
    assert refused(capsys, tmp_path / "out", checkpoint(tmp_path / "m.pt"), *options).startswith(sentence)


@pytest.mark.parametrize("case", GOALS)
def test_what_goes_with_no_such_goal(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options, sentence = GOALS[case]
    path = checkpoint(tmp_path / "m.pt")
    assert refused(capsys, tmp_path / "out", path, *options, command=run_circuit).startswith(sentence)


@pytest.mark.parametrize("case", DATA)
def test_data(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make, sentence = DATA[case]
    path = checkpoint(tmp_path / "m.pt", classes=None, data=None)
    assert sentence in refused(capsys, tmp_path / "out", path, "--data", *make(tmp_path))


def test_data_that_nothing_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = checkpoint(tmp_path / "m.pt", data=None)
    assert refused(capsys, tmp_path / "out", path).endswith(
        "does not name its data: give images with --data, a folder, an .npz or digits"
    )


def test_code_in_a_pickle_does_not_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": Code(tmp_path / "marker")}, tmp_path / "m.pt")
    assert "which would run when it is unpickled" in refused(capsys, tmp_path / "out", tmp_path / "m.pt")
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("place", ["below a file", "a file", "where nothing can be made"])
def test_output_that_cannot_be_written(tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str) -> None:
    path = artifact(tmp_path / "m.pt")
    out = {"below a file": path / "a" / "b", "a file": path, "where nothing can be made": Path("/proc/vitfx/out")}[
        place
    ]
    if place == "where nothing can be made" and not Path("/proc/self").exists():
        pytest.skip("this system has no /proc")
    assert run(path, out) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {out}")
    assert said.count("\n") == 1
    assert "--out" in said
    assert list(tmp_path.iterdir()) == [path]


def test_a_name_too_long_for_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(artifact(tmp_path / "m.pt"), tmp_path / ("o" * 300)) == 2
    assert "can't be written (File name too long)" in capsys.readouterr().err


def test_earlier_results_are_not_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in (*RESULTS, "notes.txt"):
        (out / name).write_text(f"my {name}")
    path = artifact(tmp_path / "m.pt")
    assert refused(capsys, out, path, "--tau", "0.01") == (
        f"{out} is not empty (it has baseline.onnx): name another folder with --out, or pass --force to replace it"
    )
    assert all((out / name).read_text() == f"my {name}" for name in RESULTS)
    assert run(path, out, "--tau", "0.01", "--force") == 0
    assert sorted(one.name for one in out.iterdir()) == sorted([*RESULTS, "notes.txt"])
    assert (out / "notes.txt").read_text() == "my notes.txt"
    assert all((out / name).read_bytes() != f"my {name}".encode() for name in RESULTS)


def test_a_tau_that_is_no_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([str(tmp_path / "m.pt"), "--tau", "abc"])
    assert ended.value.code == 2
    assert "argument --tau: invalid float value: 'abc'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_one_whole_image_is_too_few(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    images = folder(tmp_path / "images", 20)
    calibration = open_data(str(images), GREY).calibration
    for name in calibration.names[1:]:
        next(images.rglob(Path(name).name)).write_bytes(b"no image")
    count = len(calibration)
    said = refused(
        capsys,
        tmp_path / "out",
        artifact(tmp_path / "m.pt"),
        "--data",
        images,
        "--samples",
        count,
        "--corruption",
        "noise",
    )
    assert said == f"{count - 1} of the {count} sampled images are corrupt: replace them in {images}"

"""vitfx.models.inert: what training scripts save beside the weights is passed over, said, and never run."""

from __future__ import annotations

import argparse
import collections
import functools
import pathlib
import subprocess
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.models.test_checkpoint_errors import refused
from tests.models.test_state_dicts import ARCH, AVERAGE, RAW, holds, loaded, put, vit
from vitfx.models.checkpoint import load_model

ARGS = argparse.Namespace(
    model="test_vit", lr=1e-3, output_dir=pathlib.Path("runs"), betas=(0.9, 0.95), norm=functools.partial(nn.LayerNorm)
)
OPTIMIZER = {"state": {0: {"exp_avg": torch.ones(3), "step": 3}}, "param_groups": [{"lr": np.float64(0.1)}]}
HEADLESS = {name: value for name, value in RAW.items() if not name.startswith("head.")}


class AttributeDict(dict[str, Any]):
    """As Lightning's and yacs': a dictionary with attributes."""


class History(list[float]):
    """A list of a class of its own."""


class Runs:
    """Makes a marker file when it is unpickled, by a function outside the modules that torch blocks."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return subprocess.check_call, (["touch", str(self.marker)],)


class Config:
    """As omegaconf's: it holds itself and classes."""

    def __init__(self) -> None:
        self.content, self.kinds, self.parent = {"lr": 0.1}, (dict, Any), self


class ModelEma:
    """As timm's: the average as a whole module."""

    def __init__(self) -> None:
        self.module = vit(1)


FILES: dict[str, tuple[Any, dict[str, Any], dict[str, torch.Tensor]]] = {
    "timm": (
        {
            "epoch": 3, "arch": "test_vit", "state_dict": RAW, "optimizer": OPTIMIZER, "version": 2, "args": ARGS,
            "amp_scaler": {"scale": 65536.0}, "state_dict_ema": AVERAGE, "metric": np.float64(71.5),
        },
        {"weights": "ema"},
        AVERAGE,
    ),
    "MAE": (
        {"model": RAW, "optimizer": OPTIMIZER, "scaler": {"scale": 65536.0}, "epoch": 99, "args": ARGS},
        {},
        RAW,
    ),
    "DINO": (
        {
            "student": put("module.backbone.", HEADLESS) | {"module.head.mlp.0.weight": torch.ones(3)},
            "teacher": put("backbone.", {name: value + 1 for name, value in HEADLESS.items()}),
            "optimizer": OPTIMIZER, "epoch": 100, "args": ARGS, "dino_loss": {"center": torch.ones(1, 3)},
        },
        {"arch": "timm:test_vit,num_classes=0", "weights": "raw"},
        HEADLESS,
    ),
    "DeiT": (
        {
            "model": RAW, "optimizer": OPTIMIZER, "lr_scheduler": {}, "epoch": 7, "model_ema": AVERAGE,
            "scaler": {}, "args": ARGS,
        },
        {"weights": "raw"},
        RAW,
    ),
}  # fmt: skip


@pytest.mark.parametrize("script", FILES)
def test_what_training_scripts_save(script: str, tmp_path: Path) -> None:
    contents, options, wanted = FILES[script]
    model = loaded(tmp_path, contents, **options)
    assert holds(model, wanted)
    (note,) = (line for line in model.first_lines if "not read" in line)
    assert "`args` holds an argparse.Namespace" in note


BESIDE: dict[str, tuple[object, str]] = {
    "numpy scalar": (np.float32(0.5), "multiarray.scalar"),
    "numpy array": (np.arange(3), "multiarray._reconstruct"),
    "path": (pathlib.PurePosixPath("a/b"), "PurePosixPath"),
    "configuration": (Config(), "test_inert.Config"),
    "partial": (functools.partial(print, end=""), "functools.partial"),
    "namespace": (types.SimpleNamespace(lr=0.1), "types.SimpleNamespace"),
    "class": (Config, "test_inert.Config"),
    "optimizer": (torch.optim.AdamW(vit().parameters()), "torch.optim.adamw.AdamW"),
    "in a list": ([{"path": pathlib.PurePosixPath("a")}], "`beside.0.path` holds a pathlib"),
}  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kind", BESIDE)
def test_objects_beside_the_weights(kind: str, zipped: bool, tmp_path: Path) -> None:
    beside, named = BESIDE[kind]
    torch.save({"model": RAW, "beside": beside}, tmp_path / "a.pth", _use_new_zipfile_serialization=zipped)
    model = load_model(str(tmp_path / "a.pth"), arch=ARCH)
    assert holds(model, RAW)
    assert named in (model.weights_note or "")


def with_items(made: Any, **attributes: object) -> Any:
    made.__dict__.update(attributes)
    return made


ITEMS: dict[str, object] = {
    "AttributeDict": with_items(AttributeDict(lr=0.1), frozen=True),
    "defaultdict": collections.defaultdict(list, {"loss": [0.5]}),
    "list": with_items(History([0.5]), best=1),
    "deque": collections.deque([0.5], maxlen=3),
    "all of them": [AttributeDict(a=1), collections.defaultdict(int, {"a": 1}), History([0.5]), collections.deque([1])],
}


@pytest.mark.parametrize("kind", ITEMS)
def test_mappings_and_lists_of_other_classes(kind: str, tmp_path: Path) -> None:
    model = loaded(tmp_path, {"model": RAW, "args": ARGS, "hyper_parameters": ITEMS[kind]})
    assert holds(model, RAW)


def test_weights_in_a_mapping_of_another_class(tmp_path: Path) -> None:
    assert holds(loaded(tmp_path, AttributeDict(model=AttributeDict(RAW))), RAW)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["args", "whole", "weights"])
def test_nothing_runs(place: str, zipped: bool, tmp_path: Path) -> None:
    known = set(torch.serialization.get_safe_globals())
    code = Runs(tmp_path / "marker")
    contents = {"args": {"model": RAW, "args": code}, "whole": code, "weights": RAW | {"head.bias": code}}[place]
    torch.save(contents, tmp_path / "model.pt", _use_new_zipfile_serialization=zipped)
    if place == "args":
        model = load_model(str(tmp_path / "model.pt"), arch=ARCH)
        assert "`args` holds a commands.check_call, which is not read" in (model.weights_note or "")
    else:
        assert "check_call" in refused(tmp_path / "model.pt", arch=ARCH)
    assert not (tmp_path / "marker").exists()
    assert set(torch.serialization.get_safe_globals()) == known
    torch.load(tmp_path / "model.pt", weights_only=False)
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("kind", ["whole", "model", "beside an optimizer"])
def test_weights_in_a_module_are_refused(kind: str, tmp_path: Path) -> None:
    files = {"whole": vit(), "model": {"model": vit()}, "beside an optimizer": {"model": vit(), "optimizer": OPTIMIZER}}
    said = refused(tmp_path / "model.pt", files[kind], arch=ARCH)
    assert "holds pickled code (timm.models.vision_transformer.VisionTransformer" in said
    assert "save the state_dict instead" in said


def test_an_average_in_a_module_is_not_passed_over(tmp_path: Path) -> None:
    contents = {"model": RAW, "model_ema": ModelEma(), "args": ARGS}
    assert "an average of the weights (model_ema)" in refused(tmp_path / "model.pt", contents, arch=ARCH)
    assert holds(loaded(tmp_path, contents, weights="raw"), RAW)

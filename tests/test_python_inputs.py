"""What may be given to `vitfx.prune` and its like from Python: models, images and labels in every usual form."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from torch.nn.utils import prune

import vitfx
from tests.support.families import CLASSES, images, make
from vitfx.circuits.circuit import Circuit
from vitfx.runs.memory_inputs import open_given

PIXELS, LABELS = images(8), torch.arange(8) % CLASSES


def found(model: Any, pixels: Any = PIXELS, labels: Any = LABELS) -> Circuit:
    return vitfx.discover(model, pixels, labels, tau=2e-4, paths=2)


def decided(circuit: Circuit) -> list[str]:
    return sorted(map(str, circuit.removed))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return make("timm")


@pytest.fixture(scope="module")
def expected(model: nn.Module) -> list[str]:
    return decided(found(model))


@pytest.mark.parametrize(
    "wrap",
    [
        pytest.param(torch.compile, marks=pytest.mark.slow),
        pytest.param(nn.DataParallel, marks=pytest.mark.slow),
        lambda model: torch.compile(nn.DataParallel(model)),
    ],
)
def test_wrapped_models(model: nn.Module, expected: list[str], wrap: Callable[[nn.Module], nn.Module]) -> None:
    assert decided(found(wrap(model))) == expected


def test_masked_models(tmp_path: Any) -> None:
    model = make("timm")
    for part in model.modules():
        if isinstance(part, nn.Linear):
            prune.l1_unstructured(part, "weight", 0.3)
    pruned = vitfx.prune(model, PIXELS, LABELS, tau=2e-4, paths=2, compensate="none")
    with torch.no_grad():
        assert torch.allclose(pruned.original(PIXELS), model(PIXELS), atol=1e-5)
    assert pruned.save(tmp_path / "small").is_dir()
    assert prune.is_pruned(model)


@pytest.mark.parametrize("name", ["ViT", "Dinov2"])
def test_models_of_transformers(name: str) -> None:
    config = getattr(transformers, f"{name}Config")(
        image_size=32, patch_size=8, num_hidden_layers=2, num_attention_heads=2, hidden_size=16, num_labels=CLASSES
    )
    model = getattr(transformers, f"{name}ForImageClassification")(config).eval()
    fast = vitfx.optimize(model, PIXELS)
    with torch.no_grad():
        assert torch.allclose(fast.module(PIXELS), model(PIXELS).logits, atol=1e-5)


IMAGES: dict[str, Callable[[], Any]] = {
    "array": lambda: PIXELS.numpy(),
    "array, not contiguous": lambda: np.ascontiguousarray(PIXELS.numpy().transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2),
    "array, upside down twice": lambda: np.ascontiguousarray(PIXELS.numpy()[:, :, ::-1])[:, :, ::-1],
    "array, big-endian": lambda: PIXELS.numpy().astype(">f4"),
    "lists": lambda: PIXELS.tolist(),
    "list of tensors": lambda: list(PIXELS),
    "list of arrays": lambda: list(PIXELS.numpy()),
    "needs gradients": lambda: PIXELS.clone().requires_grad_(),
}
GIVEN: dict[str, Callable[[], Any]] = {
    "list": lambda: LABELS.tolist(),
    "tuple": lambda: tuple(LABELS.tolist()),
    "list of tensors": lambda: list(LABELS),
    "array": lambda: LABELS.numpy(),
    "int32": lambda: LABELS.int(),
    "uint8 array": lambda: LABELS.numpy().astype(np.uint8),
    "none": lambda: None,
}


@pytest.mark.parametrize("case", IMAGES)
def test_images(model: nn.Module, case: str) -> None:
    _, opened = open_given(model, IMAGES[case](), None)
    assert torch.equal(opened.pixels, PIXELS) and opened.pixels.dtype == torch.float32
    assert not opened.pixels.requires_grad


@pytest.mark.parametrize("case", GIVEN)
def test_labels(model: nn.Module, case: str) -> None:
    labels = GIVEN[case]()
    _, opened = open_given(model, PIXELS, labels)
    assert opened.labels is None if labels is None else torch.equal(opened.labels, LABELS)


REFUSED: dict[str, tuple[Any, Any, str]] = {
    "bytes": (np.zeros((4, 3, 32, 32), np.uint8), None, r"images are \(4, 3, 32, 32\) of torch.uint8: give floats"),
    "one image": (PIXELS[0].numpy(), None, r"images are \(3, 32, 32\) of torch.float32: give floats"),
    "images of many sizes": ([PIXELS[0], PIXELS[1, :, :8]], None, "images are a list that is no array"),
    "ragged lists": ([[1.0], [1.0, 2.0]], None, "images are a list that is no array"),
    "names": (["a.png", "b.png"], None, "images are a list that is no array"),
    "a path": ("photos/", None, "images are a str that is no array"),
    "no images": ([], None, r"images are \(0,\)"),
    "ignored": (PIXELS, torch.full((8,), -100), "labels run from -100 to -100 and the model has 7 logits: .* 0 to 6"),
    "from 1": (PIXELS, LABELS + 1, "labels run from 1 to 7 and the model has 7 logits"),
    "too few": (PIXELS, [1, 2], r"labels are \(2,\) for 8 images"),
    "one-hot": (PIXELS, np.eye(7)[LABELS], r"labels are \(8, 7\): give integers, the positions of classes"),
    "floats": (PIXELS, LABELS.double(), "labels are of torch.float64: give integers"),
    "truths": (PIXELS, LABELS > 2, "labels are of torch.bool: give integers"),
    "names of classes": (PIXELS, ["cat"] * 8, "labels are a list that is no array"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_mistakes(model: nn.Module, case: str) -> None:
    pixels, labels, sentence = REFUSED[case]
    for work in (vitfx.prune, vitfx.discover):
        with pytest.raises(vitfx.errors.UserError, match=sentence) as caught:
            work(model, pixels, labels, tau=0.01)
        assert "\n" not in str(caught.value) and "--" not in str(caught.value)


MODELS: dict[str, tuple[Callable[[], Any], str]] = {
    "a path": (lambda: "model.pt", "the model is a str: give an nn.Module"),
    "a function": (lambda: torch.relu, "the model is a builtin_function_or_method: give an nn.Module"),
    "weights": (lambda: make("timm").state_dict(), "the model is a OrderedDict: give an nn.Module"),
    "quantized": (
        lambda: torch.ao.quantization.quantize_dynamic(make("timm"), {nn.Linear}, dtype=torch.qint8),
        "the model is quantized .*: give the float32 model",
    ),
    "half": (lambda: make("timm").half(), "float16 weights, which round too coarsely"),
    "double": (lambda: make("timm").double(), "float64 weights and the images are torch.float32"),
}


@pytest.mark.parametrize("case", MODELS)
def test_models_that_are_none(case: str) -> None:
    create, sentence = MODELS[case]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        given = create()
    for work in (vitfx.optimize, vitfx.discover):
        with pytest.raises(vitfx.errors.UserError, match=sentence) as caught:
            work(given, PIXELS)
        assert "\n" not in str(caught.value) and "--" not in str(caught.value)


ALIKE = {"white": torch.ones(8, 3, 32, 32), "black": torch.zeros(8, 3, 32, 32), "copies": images(1).repeat(8, 1, 1, 1)}


@pytest.mark.parametrize("case", ALIKE)
@pytest.mark.parametrize(
    "arguments",
    [
        {"tau": 1e-9},
        {"tau": 1e-3, "max_kl": 1e-3},
        {"target_flops": 0.7},
        {"max_kl": 0.1},
        {"method": "eap", "tau": 1e-6},
        {"method": "eap-acdc", "granularity": "edge"},
        {"tau": 1e-3, "ablation": "resample"},
    ],
)
def test_images_that_are_all_alike(model: nn.Module, case: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(vitfx.errors.UserError, match="gives the same answer for all 8 calibration images"):
        vitfx.prune(model, ALIKE[case], LABELS, **arguments)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"tau": -1.0}, "`tau` -1.0 is not a threshold: give a finite number of nats, 0 or more"),
        ({"tau": 0.1, "max_kl": -1.0}, "`max_kl` -1.0 is not a limit"),
        ({"paths": 0}, "`paths` 0 is too small: give 1 or more"),
        ({"method": "magic"}, "`method` magic is not known: choose one of acdc"),
        ({"target_speedup": 0.5}, "`target_speedup` 0.5 is not faster: give a number above 1"),
        ({"max_divergence": 0.0}, "`max_kl` 0 allows nothing"),
        ({"max_divergence": 0.1, "max_kl": 0.1}, "`max_divergence` and `max_kl` are two names of one limit"),
        ({"max_drop": 0.0}, "`max_drop` 0 allows nothing"),
        ({"target_speedup": 2.0, "target": "tpu"}, "`target` tpu is not a target|tpu"),
        ({"tau": 100.0}, "τ = 100.0 nothing of the image .* choose a smaller `tau` or set `max_kl`$"),
        ({"tau": 100.0, "max_kl": 1e9}, "choose a smaller `tau` or `max_kl`$"),
        ({"tau": 1e9, "method": "eap"}, "choose a smaller `tau`$"),
    ],
)
def test_sentences_name_parameters(model: nn.Module, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(vitfx.errors.UserError, match=sentence) as caught:
        vitfx.prune(model, PIXELS, LABELS, **arguments)
    assert "--" not in str(caught.value)


def test_files_in_the_way(model: nn.Module, tmp_path: Any) -> None:
    fast = vitfx.optimize(model, PIXELS, rewrites="none")
    (tmp_path / "there.onnx").write_text("mine")
    for place in (tmp_path / "there.onnx", tmp_path, tmp_path / "none" / "a.onnx"):
        with pytest.raises(vitfx.errors.UserError) as caught:
            fast.to_onnx(place)
        assert "--" not in str(caught.value)
    with pytest.raises(vitfx.errors.UserError, match="`rewrites` magic is not a rewrite"):
        vitfx.optimize(model, PIXELS, rewrites="magic")

"""The demo as it is deployed, and images of it, for what int8 makes of them."""

from __future__ import annotations

import onnx
import pytest
import torch

from vitfx.deploy.deployment import NAMES, default_deployment, deploy
from vitfx.graph.trace import to_canonical
from vitfx.images.image_set import Images
from vitfx.images.splits import open_data
from vitfx.models.checkpoint import load_model


@pytest.fixture(scope="module")
def digits() -> Images:
    demo = load_model("demo")
    return open_data("digits", demo.preprocess, demo.classes).calibration.sample(128, seed=0).load()


@pytest.fixture(scope="module")
def whole(digits: Images) -> onnx.ModelProto:
    """The demo after all exact rewrites, which leave maps of many forms: absorbed keys, biases folded away."""
    graph = to_canonical(load_model("demo").module, digits.pixels[:2]).graph_module
    deployment = default_deployment(NAMES, torch.device("cpu"), portable=True)
    return deploy(graph, deployment, digits.pixels[:8], {"role": "pruned", "precision": "fp32"}).model
